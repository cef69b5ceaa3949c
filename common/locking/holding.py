"""The block in which a task holds a lock. It can be cancelled when the lock is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from common.locking.key_lease import Hold
from common.locking.lock_errors import LockLost


class Holding:
    """The ``async with`` block of ``KeyLocks.hold``."""

    def __init__(
        self,
        acquire: Callable[[], Awaitable[Hold]],
        end: Callable[[Hold], None],
        *,
        cancel_on_loss: bool,
    ) -> None:
        self._acquire = acquire
        self._end = end
        self._cancel_on_loss = cancel_on_loss
        self._hold: Hold | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._cancelled = False

    async def __aenter__(self) -> Hold:
        assert self._hold is None, "one block each"
        hold = self._hold = await self._acquire()
        if self._cancel_on_loss:
            if hold.lost:
                # Before the block: there is nothing to cancel yet.
                self._end(hold)
                raise LockLost
            self._task = asyncio.current_task()
            assert self._task is not None
            self._cancelling = self._task.cancelling()
            hold.when_lost(self._cancel)
        return hold

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raises LockLost if the block was cancelled for it, or ended without noticing it."""
        hold = self._hold
        assert hold is not None
        lost = self._cancel_on_loss and hold.lost
        hold.when_lost(None)
        self._end(hold)
        if self._cancelled:
            assert self._task is not None
            # As in asyncio.timeout: another's cancellation is not taken for this one.
            if self._task.uncancel() > self._cancelling or kind is not asyncio.CancelledError:
                lost = lost and kind is None
        elif kind is not None:
            lost = False
        if lost:
            raise LockLost from error

    def _cancel(self) -> None:
        assert self._task is not None
        self._cancelled = True
        self._task.cancel()
