"""Locks on keys in Redis, for a task at a time: ``async with locks.hold([key], wait_s=...)``.

They order those who want the same rows, over all replicas, and decide nothing: a lease can end
while its holder is paused. PostgreSQL decides, by row lock, version, or the lock's fence.

    async with open_key_locks(url, "seats", waiting=Waiting.HANDOFF) as locks:
        async with locks.hold(["seat:{7}:A1", "seat:{7}:A2"], wait_s=0.05) as hold:
            ...  # begin, write, hold.check(), commit

The order is always: lock, begin, write, commit, unlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Final

from prometheus_client import Counter, Histogram
from redis.asyncio import RedisCluster

from common import deadlines
from common.locking.grant_channel import ClusterChannels, GrantChannel, Granted, open_channel
from common.locking.holding import Holding
from common.locking.key_commands import KeyCommands, Keys, NodeCommands
from common.locking.key_lease import Hold
from common.locking.key_line import KeyLine, Terms, Waiting
from common.locking.key_scripts import CHANNEL
from common.locking.lock_errors import (
    InvalidLock,
    LockBusy,
    LocksClosed,
    LockUnavailable,
)
from common.locking.lock_limits import LEASE_S, check_lease, check_wait, valid_keys
from common.locking.redis import RedisUnavailable, open_redis
from common.metrics import LATENCY_BUCKETS_S, REGISTRY
from common.tasks import DetachedTasks

UNKNOWN_MAX: Final = 1_000
"""Acquisitions without a reply that are remembered."""
CLOSE_S: Final = 1.0
"""How long holders and releases in flight get at the end."""

_acquired = Counter(
    "tally_key_lock_acquisitions",
    "Locks taken, by lock and path: reply (by the first or a later attempt), message (handed over "
    "by another process), local (by the same process) or absent (Redis unavailable: not locked).",
    ("lock", "path"),
    registry=REGISTRY,
)
_refused = Counter(
    "tally_key_lock_refusals",
    "Locks not taken, by lock and reason: busy (the wait limit passed) or absent (Redis "
    "unavailable, for a caller that needs the lock).",
    ("lock", "reason"),
    registry=REGISTRY,
)
_wait = Histogram(
    "tally_key_lock_wait_seconds",
    "Time from the request of a lock to its acquisition, in seconds.",
    ("lock",),
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
_held = Histogram(
    "tally_key_lock_hold_seconds",
    "Time from holding a lock to its release or loss, in seconds.",
    ("lock",),
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)


class KeyLocks:
    """Locks of one name, which all have the same strategy and the same lease."""

    def __init__(
        self,
        name: str,
        commands: KeyCommands | None,
        *,
        waiting: Waiting,
        lease_s: float,
        one_slot: bool = False,
    ) -> None:
        """``commands``: None where no Redis is configured. ``one_slot``: refuse keys of several
        slots, since a node of a cluster has only its own."""
        check_lease(lease_s)
        self._waiting = waiting
        self._one_slot = one_slot
        self._terms = None
        if commands is not None:
            self._terms = Terms(name, commands, waiting, lease_s, self._channel_ready, self.leave)
        self._lines: dict[Keys, KeyLine] = {}
        self._unknown: dict[int, Keys] = {}
        self._tasks = DetachedTasks(f"locks {name}")
        self._closed = False
        self._channel: GrantChannel | ClusterChannels | None = None
        self._wait = _wait.labels(name)
        self._held = _held.labels(name)
        self._acquired = {
            path: _acquired.labels(name, path) for path in ("reply", "message", "local", "absent")
        }
        self._refused = {reason: _refused.labels(name, reason) for reason in ("busy", "absent")}

    def hold(
        self,
        keys: Collection[str],
        *,
        wait_s: float = 0.0,
        required: bool = False,
        cancel_on_loss: bool = False,
    ) -> Holding:
        """Hold all ``keys``, or none, while the ``async with`` block runs. Not reentrant.

        ``wait_s``: how long to wait for them, in seconds, and no longer than the running call's
        deadline; 0 with SIMPLE, which does not wait, and above 0 with the others. The lease is
        another limit, and is renewed while the block runs.
        ``required``: raise LockUnavailable if Redis is unavailable; else the block runs unguarded,
        since the database decides.
        ``cancel_on_loss``: cancel the block when the lock is lost, and raise LockLost; else its
        loss is counted, and ``Hold.check`` raises it. It needs ``required``, since a block that
        runs unguarded has no lock to lose.

        Raises InvalidLock. Entering the block raises LockBusy, LocksClosed, LockLost if the lock
        was lost before the block could begin, and DeadlineTooShort if no time is left.
        """
        if cancel_on_loss and not required:
            raise InvalidLock("cancel_on_loss needs required")
        check_wait(wait_s, waits=self._waiting is not Waiting.SIMPLE)
        valid = valid_keys(keys, one_slot=self._one_slot)
        acquire = partial(self.acquire, valid, wait_s, required=required)
        return Holding(acquire, self.ended, cancel_on_loss=cancel_on_loss)

    async def close(self) -> None:
        """Refuse new holds, fail those that wait with LocksClosed, and let holders end.

        A lock that is held for more than CLOSE_S from now on is renewed no more: its keys are free
        when its lease ends.
        """
        self._closed = True
        for line in self._lines.values():
            line.fail(LocksClosed())
            line.wake()
        await self._tasks.close(CLOSE_S)

    def listen(self, channel: GrantChannel | ClusterChannels | None) -> None:
        """Be woken by what ``channel`` receives."""
        self._channel = channel

    def deliver(self, text: str) -> None:
        """Wake the line that waits in Redis under the message's number.

        A number that no line has any more is freed by a command that is under way, unless a command
        of it had no reply: then it is freed here.
        """
        assert self._terms is not None
        message = Granted.read(text)
        if message is None:
            return
        line = self._terms.lines.get(message.number)
        if line is not None:
            line.granted(message)
            return
        keys = self._unknown.pop(message.number, None)
        if keys is not None:
            self._tasks.start(self._free(keys, message.number))

    def leave(self, keys: Keys, number: int) -> None:
        """Note an acquisition whose command had no reply: it may be granted later."""
        while len(self._unknown) >= UNKNOWN_MAX:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[number] = keys

    async def _free(self, keys: Keys, number: int) -> None:
        assert self._terms is not None
        with suppress(RedisUnavailable):
            await self._terms.commands.free(keys, number)

    def wake_all(self) -> None:
        for line in self._lines.values():
            line.wake()

    def _channel_ready(self) -> bool:
        return self._channel is not None and self._channel.ready

    # -- for Holding -------------------------------------------------------------------------------

    async def acquire(self, keys: Keys, wait_s: float, *, required: bool) -> Hold:
        """A hold that has to be ended. Raises what entering the block of ``hold`` raises."""
        limit_s = deadlines.timeout_for(wait_s)
        began = asyncio.get_running_loop().time()
        try:
            hold = await self._join(keys, limit_s)
        except LockBusy:
            self._refused["busy"].inc()
            raise
        except LockUnavailable:
            if required:
                self._refused["absent"].inc()
                raise
            hold = Hold(None, None, "absent")
        self._acquired[hold.path].inc()
        self._wait.observe(hold.began - began)
        return hold

    async def _join(self, keys: Keys, wait_s: float) -> Hold:
        if self._closed:
            raise LocksClosed
        if self._terms is None:
            raise LockUnavailable
        line = self._lines.get(keys)
        if line is None:
            line = self._lines[keys] = KeyLine(self._terms, keys)
            caller = line.join()
            self._tasks.start(self._serve(line, keys))
        elif self._waiting is Waiting.SIMPLE and line.busy:
            raise LockBusy
        else:
            caller = line.join()
        timer = None
        if wait_s:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(wait_s, line.give_up, caller, loop.time())
        try:
            return await caller
        except asyncio.CancelledError:
            if not caller.cancelled() and caller.done() and caller.exception() is None:
                # Granted at the moment of the cancellation: to the next one.
                caller.result().end()
            raise
        finally:
            line.leave(caller)
            if timer is not None:
                timer.cancel()

    async def _serve(self, line: KeyLine, keys: Keys) -> None:
        try:
            await line.serve()
        finally:
            # Nothing was awaited since the line found that nobody waits.
            del self._lines[keys]
            line.fail(LockUnavailable())

    def ended(self, hold: Hold) -> None:
        """Let the next one have the keys; never waits."""
        self._held.observe(asyncio.get_running_loop().time() - hold.began)
        hold.end()


@asynccontextmanager
async def open_key_locks(
    url: str, name: str, *, waiting: Waiting, lease_s: float = LEASE_S
) -> AsyncIterator[KeyLocks]:
    """Locks on the Redis at ``url``; with an empty URL no lock is available.

    ``name``: in metrics; from the code. All who lock the same keys use the same name, strategy and
    lease. Raises InvalidLock.
    """
    if not url:
        yield KeyLocks(name, None, waiting=waiting, lease_s=lease_s)
        return
    async with AsyncExitStack() as exits:
        redis = open_redis(url)
        await exits.enter_async_context(redis)
        commands = NodeCommands(redis, lease_s)
        one_slot = isinstance(redis, RedisCluster)
        locks = KeyLocks(name, commands, waiting=waiting, lease_s=lease_s, one_slot=one_slot)
        if waiting is Waiting.HANDOFF:
            name = f"{CHANNEL}{commands.process}"
            locks.listen(
                await exits.enter_async_context(
                    open_channel(redis, url, name, locks.deliver, locks.wake_all)
                )
            )
        exits.push_async_callback(locks.close)
        yield locks
