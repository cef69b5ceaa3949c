"""What this process owns in Redis: a lease that is renewed, and the holders that share it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from common.locking.key_commands import KeyCommands, Keys
from common.locking.lock_errors import LockLost
from common.locking.redis import RedisUnavailable

RENEWALS: Final = 3
"""In one lease: two may fail before it ends."""


class KeyLease:
    """One ownership of a set of keys, from its grant until it is freed, lost or left to expire.

    Its time is measured from before the command was sent that began or renewed it, so that it ends
    here before it ends in Redis.
    """

    def __init__(
        self, commands: KeyCommands, keys: Keys, number: int, *, lease_s: float, until: float
    ) -> None:
        """``until``: the time on the event loop's clock at which the lease ends."""
        self._loop = asyncio.get_running_loop()
        self._commands = commands
        self._lease_s = lease_s
        self.keys = keys
        self.number = number
        self.until = until
        self.left_to_expire = False
        self._lost = False
        self.on_lost: Callable[[], None] | None = None
        """Called once, when the lease is lost."""
        self._stopping: asyncio.Event | None = None
        self._stopped = False
        self._abandoned = False
        self._keeping: asyncio.Task[None] | None = None
        self._end: asyncio.TimerHandle | None = None
        self._begin = self._loop.call_at(self.until - lease_s * (1 - 1 / RENEWALS), self._keep)

    @property
    def lost(self) -> bool:
        """Whether the lease has ended. True too after a pause in which nothing could note it."""
        return self._lost or self._loop.time() >= self.until

    async def stop(self) -> None:
        """End the renewals. One in flight is awaited: none reaches Redis after the release."""
        self._begin.cancel()
        self._stopped = True
        if self._keeping is not None and self._stopping is not None:
            self._stopping.set()
            await self._keeping
        if self._end is not None:
            self._end.cancel()

    def abandon(self) -> None:
        """Begin no more renewals, without waiting. ``on_lost`` is still called at the end."""
        self._begin.cancel()
        self._abandoned = True
        if self._stopping is not None:
            self._stopping.set()
        if self._end is None:
            self._end = self._loop.call_at(self.until, self._lose)

    def _keep(self) -> None:
        self._end = self._loop.call_at(self.until, self._lose)
        self._stopping = asyncio.Event()
        self._keeping = self._loop.create_task(self._renew_repeatedly(self._stopping))

    async def _renew_repeatedly(self, stopping: asyncio.Event) -> None:
        pause_s = self._lease_s / RENEWALS
        while not (self._stopped or self._abandoned or self.lost):
            began = self._loop.time()
            try:
                owned = await self._commands.renew(self.keys, self.number)
            except RedisUnavailable:
                # Until its end, the lease may still be there.
                pause_s = min(pause_s, self._lease_s / RENEWALS / 4)
            else:
                if not owned:
                    self._lose()
                    return
                self._extend(began + self._lease_s - self._commands.drift_s)
                pause_s = self._lease_s / RENEWALS
            try:
                async with asyncio.timeout(pause_s):
                    await stopping.wait()
            except TimeoutError:
                continue
        if self.lost:
            self._lose()

    def _extend(self, until: float) -> None:
        self.until = until
        if self._end is not None:
            self._end.cancel()
        self._end = self._loop.call_at(until, self._lose)

    def _lose(self) -> None:
        if not self._lost and not self._stopped:
            self._lost = True
            if self.on_lost is not None:
                self.on_lost()


class Hold:
    """A lock that is held, until its ``async with`` block ends."""

    def __init__(self, lease: KeyLease | None, fence: int | None, path: str) -> None:
        self._lease = lease
        self.fence = fence
        """Higher than the fence of each earlier holder of any of the keys; None from Redlock, and
        where Redis is unavailable. A write that carries it, and is refused where a higher one was
        seen, cannot come too late."""
        self.path = path
        """How it was taken: by the first or a later ENTER (``reply``), handed over by another
        process (``message``) or by one of this process (``local``), or not at all (``absent``)."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.began = asyncio.get_running_loop().time()

    @property
    def guarded(self) -> bool:
        """False if Redis is unavailable, and the database's guards hold alone."""
        return self._lease is not None

    @property
    def lost(self) -> bool:
        """Whether others may hold the keys by now."""
        return self._lease is not None and self._lease.lost

    def check(self) -> None:
        """Raise LockLost if the lock is lost. For the moment before a commit."""
        if self.lost:
            raise LockLost

    def leave_to_expire(self) -> None:
        """Do not free the keys at the end, since the outcome of a commit is unknown.

        They are renewed no more, and others get them when the lease has ended.
        """
        if self._lease is not None:
            self._lease.left_to_expire = True

    def when_lost(self, call: Callable[[], None] | None) -> None:
        """``call`` it once if the lock is lost from now on; None: no more."""
        if self._lease is not None:
            self._lease.on_lost = call

    def end(self) -> None:
        """Let the next caller hold the keys, or free them."""
        if not self.ended.done():
            self.ended.set_result(None)
