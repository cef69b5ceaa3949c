"""Transactions that lock rows step by step, and wait until PostgreSQL finds a deadlock.

A lane does not: it gives up the wait before the server looks for deadlocks, and decides again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import pytest
from asyncpg import PostgresError

from common.db.database import Database, open_pools
from common.db.errors import sqlstate
from common.db.statements import Connection
from tests.support.crowd import Crowd
from tests.support.rendezvous import Rendezvous

DEADLOCK: Final = "40P01"
Step = Callable[[Connection], Awaitable[object]]


@pytest.fixture
async def database(crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """Sessions that wait for a row until PostgreSQL finds a deadlock."""
    monkeypatch.setattr("common.db.database.LOCK_TIMEOUT_MS", 0)
    opened = open_pools(crowd.urls.runtime, application_name="steps", pool_size=31)
    yield opened
    await opened.close()


async def end_of(database: Database, *steps: Step, meeting: Rendezvous | None = None) -> str:
    """The SQLSTATE with which a transaction of these steps ends, or ''.

    After each step it waits for its rival at the ``meeting``.
    """
    try:
        async with database.transactions.begin(database.waiting) as connection:
            for step in steps:
                await step(connection)
                if meeting is not None:
                    await meeting.come()
    except PostgresError as error:
        return sqlstate(error)
    return ""
