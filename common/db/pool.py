"""A pool of sessions. Which one may be used again: a proven one, not too old, of a usable server.

asyncpg's own pool does most of this. It sends cancel requests when it closes a session, though
(``common.db.transactions`` says what these do to a COMMIT), it proves no session, it does not tell
a full pool from a server that is away, and it starts a task for each use.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from asyncpg import PostgresError
from prometheus_client import Gauge

from common.db.connections import Session
from common.db.errors import CannotConnect, is_lost
from common.db.statements import Connection
from common.errors import Overloaded
from common.metrics import REGISTRY

WAIT_S: Final = 3.0
"""How long a caller waits for a session that others use."""
UNPROVEN_IDLE_S: Final = 2.0
"""A session that was idle for longer is asked for a sign of life before it is used. Under load none
is, so that the round trip costs nothing then."""
PROOF_S: Final = 1.0
"""Time limit of that sign of life."""
PLANS_S: Final = 10.0
"""How long a session keeps its plans. One that was made for a few rows may choose an index that is
as good as another as long as there are a few, and reads all of it when there are many. A new plan
is made for the pages that the table has by now."""
LIFETIME_S: Final = 1_800.0
"""A session is replaced at this age, and up to LIFETIME_JITTER earlier, so that the sessions of a
start do not end together."""
LIFETIME_JITTER: Final = 0.2

_used = Gauge(
    "tally_pool_sessions_in_use",
    "Database sessions in use, by pool.",
    ("pool",),
    registry=REGISTRY,
)
_waiting = Gauge(
    "tally_pool_waiting",
    "Transactions and reads that wait for a session, by pool.",
    ("pool",),
    registry=REGISTRY,
)


class Pool:
    """At most ``size`` sessions of one purpose. The one that was used last is used first.

    A session whose server is lost makes the older ones suspect (a failover, a restart, a firewall
    that lost its table, a changed schema): they are replaced when they are next due, so that a
    repeat gets a fresh one. Times are monotonic. Sockets are aborted, which waits for no server.
    """

    def __init__(self, open_: Callable[[], Awaitable[Session]], *, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._open = open_
        self._places = asyncio.Semaphore(size)
        self._idle: list[Session] = []
        self._lost_s = -math.inf
        self._used = 0
        self._waiting = 0
        _used.labels(name).set_function(lambda: self._used)
        _waiting.labels(name).set_function(lambda: self._waiting)
        self._settling: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """A session for the block, in autocommit mode; a transaction left open is rolled back.

        Raises Overloaded if none is free in time, or what opening one raises: CannotConnect,
        OSError, TimeoutError, or the driver's errors without a reply of the server.
        """
        await self._wait()
        self._used += 1
        try:
            session = await self._acquire()
        except BaseException:
            self._free_place()
            raise
        try:
            yield Connection(session)
        except Exception as error:
            if session.is_closed() or is_lost(error):
                self._lose(session)
            # An error of a statement's values leaves it prepared and not ended.
            await self._settle(session, unfinished=True)
            raise
        except BaseException:
            # Cancelled, perhaps within a statement, whose end nobody waits for.
            self._settle_later(session)
            raise
        else:
            await self._settle(session)

    def close(self) -> None:
        """End every idle session now, and each other, or later one, when it is released."""
        self._lost_s = math.inf
        while self._idle:
            self._idle.pop().terminate()

    # -- acquiring -------------------------------------------------------------------------------

    async def _wait(self) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await self._places.acquire()
        except TimeoutError:
            raise Overloaded(pool=self.name) from None
        finally:
            self._waiting -= 1

    async def _acquire(self) -> Session:
        while self._idle:
            session = self._idle.pop()
            if await self._is_usable(session):
                return session
            session.terminate()
        try:
            session = await self._open()
        except PostgresError as error:
            raise CannotConnect from error
        jitter = random.uniform(0, LIFETIME_JITTER)  # noqa: S311 - no secret
        session.ends_s = time.monotonic() + LIFETIME_S * (1 - jitter)
        # The sessions of a start do not plan anew together either.
        session.planned_s -= random.uniform(0, PLANS_S)  # noqa: S311 - no secret
        return session

    async def _is_usable(self, session: Session) -> bool:
        now = time.monotonic()
        if session.is_closed() or session.made_s <= self._lost_s or now > session.ends_s:
            return False
        unproven = now - session.used_s > UNPROVEN_IDLE_S
        old_plans = now - session.planned_s > PLANS_S
        if not unproven and not old_plans:
            return True
        statement = "DISCARD PLANS" if old_plans else "SELECT"
        try:
            # A session in use has the time that every statement has.
            await session.execute(statement, timeout=PROOF_S if unproven else None)
        except Exception:  # noqa: BLE001 - whatever it is, the session gave no sign of life
            self._lose(session)
            return False
        except BaseException:
            session.terminate()
            raise
        if old_plans:
            session.planned_s = now
        return True

    # -- releasing -------------------------------------------------------------------------------

    def _lose(self, session: Session) -> None:
        self._lost_s = max(self._lost_s, time.monotonic())
        session.terminate()

    async def _settle(self, session: Session, *, unfinished: bool = False) -> None:
        """End what the session does, and give it back; ``unfinished``: a statement, perhaps."""
        try:
            if unfinished and not session.is_closed() and not session.is_in_transaction():
                await session.execute("SELECT", timeout=PROOF_S)
            # It may have been a BEGIN.
            if not session.is_closed() and session.is_in_transaction():
                await session.execute("ROLLBACK", timeout=PROOF_S)
        except BaseException as error:
            session.terminate()
            if not isinstance(error, Exception):
                raise
        finally:
            self._release(session)

    def _settle_later(self, session: Session) -> None:
        """As ``_settle``, without the caller, who has gone.

        The driver has asked the server to cancel a statement that was under way.
        """
        task = asyncio.get_running_loop().create_task(
            self._settle(session, unfinished=True), context=contextvars.Context()
        )
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    def _release(self, session: Session) -> None:
        if session.is_closed() or session.is_in_transaction() or session.made_s <= self._lost_s:
            session.terminate()
        else:
            session.used_s = time.monotonic()
            self._idle.append(session)
        self._free_place()

    def _free_place(self) -> None:
        self._used -= 1
        self._places.release()
