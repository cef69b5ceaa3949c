"""The one way to run a transaction, and the COMMITs that have not returned.

With synchronous replication COMMIT waits until a standby has the transaction, without a limit: the
server has none, and ends the wait only if somebody cancels it. Then what was committed is visible,
replayed and lost in a failover. A cancel request is what the driver sends when its own time limit
passes, when the task that waits is cancelled, and when the connection is closed. So COMMIT has no
time limit of the driver, and runs in a task that nothing cancels. When the caller's limit passes,
the outcome is unknown to it; the connection stays checked out until COMMIT returns, because an
abandoned backend keeps its row locks, and a pool that opened others would fill the server.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
import structlog

from common.db.pool import Pool
from common.db.statements import Connection
from common.tasks import finished_within

COMMIT_WAIT_S: Final = 4.0
"""How long the caller of a transaction waits for its COMMIT: less than most calls take."""
ABORT_S: Final = 1.0
"""How long COMMITs get to end after their sockets were aborted. No server is asked."""

_WRITE: Final = sa.text("SELECT pg_logical_emit_message(true, 'tally', '')")
_WAITING: Final = sa.text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND usename = current_user AND wait_event = 'SyncRep'"
)

_log = structlog.stdlib.get_logger()


class CommitPending(TimeoutError):  # noqa: N818 - its base names it
    """A COMMIT has not returned in time; or every connection of the pool waits for one.

    What was committed may become visible later. It is classified as a server that is silent, so
    that nothing runs the transaction again meanwhile.
    """


class CommitsPending(Exception):  # noqa: N818 - a state, not a fault
    """No connection is left for writes; the message says what the COMMITs wait for."""


@dataclass(slots=True)
class _Commit:
    """A COMMIT that has not returned."""

    pool: Pool
    connection: Connection
    abandoned: bool = False
    """Whether it has taken longer than its caller may wait."""


class Transactions:
    """The transactions of a service's database, in every pool."""

    def __init__(self, opening: Callable[[str], Sequence[sa.Executable]]) -> None:
        """``opening``: the statements with which a transaction of the pool of this name begins."""
        self._opening = opening
        self._commits: dict[asyncio.Task[None], _Commit] = {}
        self._connecting: dict[asyncio.Timeout, Pool] = {}
        """Callers that wait for a connection of a pool."""

    @property
    def pending(self) -> bool:
        """Whether a COMMIT has not returned within its caller's time. It holds row locks."""
        return any(commit.abandoned for commit in self._commits.values())

    @asynccontextmanager
    async def begin(self, pool: Pool) -> AsyncIterator[Connection]:
        """A transaction on a session of the pool, committed at the end of the block.

        An exception in the block rolls back. Raises CommitPending if the COMMIT does not return
        within COMMIT_WAIT_S, or at once if no session of the pool is left since all wait for
        theirs; TimeoutError if it waited for a session already. If the caller is cancelled
        during the COMMIT, it goes on.
        """
        if self._is_full(pool):
            raise CommitPending
        async with AsyncExitStack() as stack:
            async with self._refused_when_full(pool):
                connection = await stack.enter_async_context(pool.connect())
            connection.begin(*self._opening(pool.name))
            yield connection
            ending = stack.pop_all()
        if connection.in_transaction():
            await self._commit(_Commit(pool, connection), ending)
        else:
            await ending.aclose()

    async def _commit(self, commit: _Commit, ending: AsyncExitStack) -> None:
        async def run() -> None:
            async with ending:
                await commit.connection.commit()

        # In a context of its own: it may outlive the call that started it.
        task = asyncio.get_running_loop().create_task(
            run(), name="commit", context=contextvars.Context()
        )
        self._commits[task] = commit
        task.add_done_callback(self._on_return)
        # A caller that hangs up earlier changes nothing: this COMMIT is as fast as any other.
        late = asyncio.get_running_loop().call_later(COMMIT_WAIT_S, self._abandon, commit)
        task.add_done_callback(lambda _: late.cancel())
        if not await finished_within(task, COMMIT_WAIT_S):
            self._abandon(commit)
            raise CommitPending
        task.result()

    def _abandon(self, commit: _Commit) -> None:
        """The time of its caller is over."""
        if not commit.abandoned:
            commit.abandoned = True
            self._refuse_if_full(commit.pool)

    def _on_return(self, task: asyncio.Task[None]) -> None:
        abandoned = self._commits.pop(task).abandoned
        error = None if task.cancelled() else task.exception()
        if abandoned and error is not None:
            _log.warning("late_commit_lost", error=type(error).__name__)

    # -- pools without a connection that is left -------------------------------------------------

    def _is_full(self, pool: Pool) -> bool:
        """Whether every session of the pool has a COMMIT that takes too long."""
        pending = sum(one.abandoned and one.pool is pool for one in self._commits.values())
        return pending >= pool.size

    @asynccontextmanager
    async def _refused_when_full(self, pool: Pool) -> AsyncIterator[None]:
        async with asyncio.timeout(None) as limit:
            self._connecting[limit] = pool
            try:
                yield
            finally:
                self._connecting.pop(limit, None)

    def _refuse_if_full(self, pool: Pool) -> None:
        """Refuse those who wait for a connection, if none can come."""
        if self._is_full(pool):
            now = asyncio.get_running_loop().time()
            for limit in [limit for limit, of in self._connecting.items() if of is pool]:
                del self._connecting[limit]
                limit.reschedule(now)

    async def check(self, connection: Connection) -> None:
        """Raise CommitsPending if a pool has no connection left. Asks the server what for."""
        if not any(self._is_full(commit.pool) for commit in self._commits.values()):
            return
        waiting = (await connection.execute(_WAITING)).scalar_one()
        cause = "a standby of synchronous_standby_names" if waiting else "the server"
        raise CommitsPending(
            f"every connection of a pool for writes has a COMMIT that waits for {cause}"
        )

    # -- shutdown --------------------------------------------------------------------------------

    async def abort(self) -> None:
        """Abort the sockets of COMMITs that have not returned, at shutdown.

        They go on in the server. Closing their connections would send cancel requests.
        """
        if not self._commits:
            return
        _log.warning("commits_aborted", commits=len(self._commits))
        for commit in self._commits.values():
            commit.connection.session.terminate()
        await asyncio.wait(set(self._commits), timeout=ABORT_S)


async def commit_as_a_write(connection: Connection) -> None:
    """Let the COMMIT of a transaction that wrote nothing wait for a standby, as a write's does.

    What it read is durable then: the standby has everything before this transaction. For a reply
    to a write that was made before.
    """
    await connection.execute(_WRITE)
