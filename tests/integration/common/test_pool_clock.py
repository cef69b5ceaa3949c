"""A pool of connections after the wall clock has been set."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa
from asyncpg import PostgresError

from common.db.database import Database

HOUR_S = 3_600.0


async def process_id(database: Database) -> int:
    """The server's process of the connection that the next read gets."""
    async with database.reads.connect() as connection:
        return int((await connection.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one())


@pytest.mark.parametrize("step_s", [0.0, -HOUR_S, HOUR_S], ids=["", "back", "forward"])
async def test_a_connection_is_used_again_after_the_clock_was_set(
    database: Database, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    with pytest.raises(PostgresError):
        async with database.reads.connect() as connection:
            await connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
    wall_clock = time.time
    monkeypatch.setattr(time, "time", lambda: wall_clock() + step_s)
    assert await process_id(database) == await process_id(database)
