"""Reads, and transactions outside lanes: each is run again once when its session was lost.

A session can be lost through no fault of the work in it: the server ended it, a failover made its
server read-only, a firewall forgot its connection, a column's type changed under its prepared
statements. The repeat has a fresh session (``common.db.pool``). A lane runs its batch again in
the same cases, more often (``common.batching.batch``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeAlias, TypeVar

from common.db.database import Database
from common.db.errors import count_error, is_lost, map_database_errors
from common.db.statements import Connection
from common.ids import is_id

T = TypeVar("T")

Work: TypeAlias = Callable[[Connection], Awaitable[T]]
"""What is done with a connection. It may be called twice, so it keeps nothing between calls."""


async def read(database: Database, work: Work[T]) -> T:
    """What ``work`` reads by a few single statements, as last committed.

    Raises DatabaseUnavailable or Overloaded.
    """
    return await _run_twice(database.reads.connect, work, idempotent=True)


async def read_by_id(
    database: Database, id_: str, find: Callable[[Connection, str], Awaitable[T | None]]
) -> T | None:
    """What one ``find`` reads; None, without asking, for text that cannot be an id.

    Raises DatabaseUnavailable or Overloaded.
    """
    if not is_id(id_):
        return None
    return await read(database, lambda connection: find(connection, id_))


async def in_transaction(
    database: Database,
    purpose: str,
    work: Work[T],
    *,
    idempotent: bool = False,
    of_call: bool = False,
) -> T:
    """What ``work`` returns, when its transaction has committed. An exception rolls it back.

    ``purpose`` and ``of_call``: see ``Database.begin``. After a loss while COMMIT was under way,
    only an ``idempotent`` one is run again: it changes nothing more if the first had committed.
    Raises DatabaseUnavailable, Overloaded, or ConflictRetriesExhausted.
    """
    begin = partial(database.begin, purpose, of_call=of_call)
    return await _run_twice(begin, work, idempotent=idempotent)


async def _run_twice(
    begin: Callable[[], AbstractAsyncContextManager[Connection]],
    work: Work[T],
    *,
    idempotent: bool,
) -> T:
    tries = 0
    with map_database_errors():
        while True:
            tries += 1
            opened = committing = False
            try:
                async with begin() as connection:
                    opened = True
                    result = await work(connection)
                    committing = True
            except Exception as error:
                count_error(error)
                # Where no session can be opened, another try would find the same. A COMMIT that
                # takes long may wait for a standby: a second one would wait too.
                silent = isinstance(error, TimeoutError)
                uncertain = committing and (silent or not idempotent)
                if tries > 1 or not opened or uncertain or not is_lost(error):
                    raise
            else:
                return result
