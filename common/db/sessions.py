"""Which pooled session may be used again: a proven one, not too old, made after the last loss."""

from __future__ import annotations

import math
import random
import time
from typing import Any, Final

from sqlalchemy import event, exc
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import AdaptedConnection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from common.db.errors import is_lost

UNPROVEN_IDLE_S: Final = 2.0
"""A session that was idle for longer is asked for a sign of life before it is used. Under load none
is, so that the round trip costs nothing then."""
PROOF_S: Final = 1.0
"""Time limit of that sign of life."""
LIFETIME_S: Final = 1_800.0
"""A session is replaced at this age, and up to LIFETIME_JITTER earlier, so that the sessions of a
start do not end together."""
LIFETIME_JITTER: Final = 0.2

_FRESH, _MADE, _USED, _ENDS = "tally_fresh", "tally_made_s", "tally_used_s", "tally_ends_s"


class SessionRules:
    """The rules for the sessions of one pool.

    A session whose connection is lost makes the older ones of its pool suspect (a failover, a
    restart, a firewall that lost its table): they are replaced when they are next due, so a repeat
    gets a fresh one. Times are monotonic: SQLAlchemy's own ``pool_recycle`` and invalidation
    compare wall clocks.
    """

    def __init__(self) -> None:
        self._lost_s = -math.inf

    @classmethod
    def apply_to(cls, engine: AsyncEngine) -> None:
        """Put the engine's pool under these rules."""
        rules = cls()
        pool = engine.sync_engine.pool
        event.listen(pool, "connect", rules._on_connect)
        event.listen(pool, "checkout", rules._on_checkout)
        event.listen(pool, "checkin", rules._on_checkin)
        event.listen(pool, "close", rules._on_close)
        event.listen(engine.sync_engine, "handle_error", rules._on_error)

    def _on_connect(self, _connection: AdaptedConnection, entry: ConnectionPoolEntry) -> None:
        now = time.monotonic()
        life_s = LIFETIME_S * (1 - random.uniform(0, LIFETIME_JITTER))  # noqa: S311
        entry.info.update({_FRESH: True, _MADE: now, _USED: now, _ENDS: now + life_s})

    def _on_checkin(self, _connection: AdaptedConnection, entry: ConnectionPoolEntry) -> None:
        entry.info[_USED] = time.monotonic()

    def _on_checkout(
        self, connection: AdaptedConnection, entry: ConnectionPoolEntry, _proxy: object
    ) -> None:
        """Raises DisconnectionError, at which the pool replaces the session with a fresh one."""
        if entry.info.pop(_FRESH, False):
            return
        now, driver = time.monotonic(), connection.driver_connection
        if driver.is_closed() or entry.info[_MADE] < self._lost_s or now > entry.info[_ENDS]:
            raise exc.DisconnectionError
        if now - entry.info[_USED] <= UNPROVEN_IDLE_S:
            return
        try:
            connection.run_async(lambda driver: driver.execute("SELECT", timeout=PROOF_S))
        except Exception as error:
            self._lost_s = now
            raise exc.DisconnectionError from error

    def _on_error(self, context: ExceptionContext) -> None:
        # A cancelled statement ends its own session alone.
        ended = context.is_disconnect and context.invalidate_pool_on_disconnect
        if context.connection is None or not (ended or is_lost(context.original_exception)):
            return
        self._lost_s = time.monotonic()
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False  # by the wall clock

    def _on_close(self, connection: Any, _entry: ConnectionPoolEntry) -> None:
        # The driver's own way to close waits for the server, which may be silent, for seconds.
        connection.driver_connection.terminate()
