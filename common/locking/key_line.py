"""The callers of this process that want one set of keys, in order of arrival.

A line has one task, which sends every command about its keys: what a caller cancels is its wait,
never a command in flight. The line as a whole waits in Redis once, whatever its length. When it
owns the keys, up to TURNS_MAX of its callers hold them one after the other without a round trip;
then the next process has its turn.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import Counter

from common.backoff import Backoff
from common.locking.grant_channel import Granted
from common.locking.key_commands import Entered, KeyCommands, Keys
from common.locking.key_lease import Hold, KeyLease
from common.locking.key_scripts import TURNS_MAX
from common.locking.lock_errors import LockBusy, LockUnavailable
from common.locking.redis import NotSent, RedisUnavailable
from common.metrics import REGISTRY, from_zero

HEARTBEAT_S: Final = 1.0
"""How often a waiter repeats ENTER: a message may be lost, an owner may have died."""
EXPIRY_SLACK_S: Final = 0.002
"""Redis counts a time to live in milliseconds."""
_SPIN: Final = Backoff(0.001, 0.05)
"""Where nobody queues. A process that has had its turns pauses for the longest of these pauses, in
which each of the others tries once."""

_losses = Counter(
    "tally_key_lock_losses",
    "Locks that ended before their holder, by lock and kind: lost (while held) or stale (handed "
    "over, and found after its lease).",
    ("lock", "kind"),
    registry=REGISTRY,
)


class Waiting(enum.Enum):
    """What a caller does about a busy key."""

    SIMPLE = "fail at once"
    SPIN = "try again after a pause that doubles, up to 50 ms"
    HANDOFF = "queue, and be woken by the release; first come, first served"


@dataclass(frozen=True, slots=True)
class Terms:
    """What all lines of a lock share."""

    name: str
    commands: KeyCommands
    waiting: Waiting
    lease_s: float
    may_queue: Callable[[], bool]
    """Whether messages of releases arrive."""
    unknown: Callable[[Keys, int], None]
    """Called with an acquisition whose command had no reply."""
    lines: dict[int, KeyLine] = field(default_factory=dict)
    """Those that ask Redis for their keys, by the number of the acquisition."""

    def __post_init__(self) -> None:
        from_zero(_losses, [self.name], ("lost", "stale"))


class KeyLine:
    """The callers of one set of keys; ``serve`` runs while there are any."""

    def __init__(self, terms: Terms, keys: Keys) -> None:
        self._terms = terms
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._callers: OrderedDict[asyncio.Future[Hold], None] = OrderedDict()
        """Those who wait, in order of arrival."""
        self._wake: asyncio.Future[None] | None = None
        self._message: Granted | None = None
        self._hold: Hold | None = None
        self._refused = False
        """Whether Redis has refused the keys to the line, and the line waits for them."""
        self._busy_s = -math.inf
        """The last time at which a key was known to be held, on the event loop's clock."""

    def join(self) -> asyncio.Future[Hold]:
        """A place at the end of the line. Who cancels it has to ``leave``."""
        caller: asyncio.Future[Hold] = self._loop.create_future()
        self._callers[caller] = None
        return caller

    def leave(self, caller: asyncio.Future[Hold]) -> None:
        """Forget a caller that waits no more. The last one takes the line out of Redis' queue."""
        self._callers.pop(caller, None)
        if not self.wanted:
            self.wake()

    @property
    def wanted(self) -> bool:
        """Whether anyone still waits."""
        return self._first() is not None

    def _first(self) -> asyncio.Future[Hold] | None:
        """The first caller that still waits: one that is cancelled leaves a moment later."""
        while self._callers:
            first = next(iter(self._callers))
            if not first.done():
                return first
            del self._callers[first]
        return None

    @property
    def busy(self) -> bool:
        """Whether a new caller would have to wait for another one."""
        return self.wanted or self._lent

    @property
    def _lent(self) -> bool:
        """Whether a caller holds the keys now."""
        return self._hold is not None and not self._hold.ended.done()

    def wake(self) -> None:
        """End the line's pause: nobody waits any more, or messages may have been missed."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def granted(self, message: Granted) -> None:
        """Redis has made this line the owner of a key."""
        self._message = message
        self.wake()

    def give_up(self, caller: asyncio.Future[Hold], joined_s: float) -> None:
        """End the wait of a caller that joined at ``joined_s``, since its limit has passed.

        It fails with LockBusy if another had a key meanwhile; else Redis has not replied in time.
        """
        if not caller.done():
            busy = self._lent or self._refused or self._busy_s >= joined_s
            caller.set_exception(LockBusy() if busy else LockUnavailable())

    def fail(self, error: Exception) -> None:
        """Raise ``error`` in all callers that wait."""
        while (caller := self._first()) is not None:
            caller.set_exception(error)

    async def serve(self) -> None:
        """Take the keys for the callers, until nobody waits."""
        owned = 0
        while self.wanted:
            try:
                if owned and not self._queues:
                    await self._terms.commands.free(self._keys, owned)
                    owned = 0
                    await self._leave_to_others()
                    continue
                lease, fence, path = await self._take(owned)
                owned = 0
                if lease is not None:
                    owned = await self._lend(lease, fence, path)
                if owned and not self.wanted:
                    await self._terms.commands.free(self._keys, owned)
                    owned = 0
            except RedisUnavailable:
                self.fail(LockUnavailable())
                if owned:
                    await self._free_if_possible(owned)
                owned = 0

    # -- Redis -------------------------------------------------------------------------------------

    async def _take(self, owned: int) -> tuple[KeyLease | None, int | None, str]:
        """Own the keys: the lease, its first fence, and how. No lease if nobody waits any more.

        ``owned``: the acquisition to pass on in the same round trip, or 0.
        """
        commands, waiting = self._terms.commands, self._terms.waiting
        number = commands.new_number()
        self._terms.lines[number] = self
        self._message = None
        attempt = 0
        try:
            while True:
                attempt += 1
                queues = self._queues
                began = self._loop.time()
                entered = await self._enter(number, owned if attempt == 1 else 0, waits=queues)
                if entered.granted:
                    until = began + self._terms.lease_s - commands.drift_s
                    return self._lease(until, number), entered.fence, "reply"
                self._refused = True
                if waiting is Waiting.SIMPLE:
                    self.fail(LockBusy())
                    return None, None, ""
                await self._pause(_pause_s(entered, attempt, queues=queues))
                if not self.wanted:
                    # Gives up the place in the queue, or passes on what was granted meanwhile.
                    await commands.free(self._keys, number)
                    return None, None, ""
                message, self._message = self._message, None
                if message is not None:
                    end = self._end_of(message, entered, began)
                    if end is not None:
                        return self._lease(end, number), message.fence, "message"
        except RedisUnavailable as error:
            self.fail(LockUnavailable())
            if attempt > 1 or not isinstance(error, NotSent):
                # A command may have been executed, or may still be.
                self._terms.unknown(self._keys, number)
                await self._free_if_possible(number)
            raise
        finally:
            del self._terms.lines[number]
            if self._refused:
                self._refused = False
                self._busy_s = self._loop.time()

    async def _enter(self, number: int, owned: int, *, waits: bool) -> Entered:
        commands = self._terms.commands
        if owned:
            return await commands.pass_on(self._keys, owned, number, waits=waits)
        return await commands.enter(self._keys, number, waits=waits)

    def _end_of(self, message: Granted, entered: Entered, began: float) -> float | None:
        """When the lease ends that a message grants; None if it does not grant all keys now.

        ``began``: when ENTER was sent, to which ``entered`` is the reply.
        """
        if len(self._keys) > 1 or message.server_ms < entered.server_ms:
            # The other keys are not owned yet; or Redis has refused the key since then, which means
            # that the grant was lost, as by a flush.
            return None
        # Granted at the server's time server_ms: on this clock, not before this.
        at = began + (message.server_ms - entered.server_ms) / 1000
        until = min(at, self._loop.time()) + message.lease_ms / 1000
        if until > self._loop.time():
            return until
        # This process was paused for longer than the lease.
        _losses.labels(self._terms.name, "stale").inc()
        return None

    async def _free_if_possible(self, number: int) -> None:
        """What cannot be freed now, the end of its lease frees."""
        with suppress(RedisUnavailable):
            await self._terms.commands.free(self._keys, number)

    def _lease(self, until: float, number: int) -> KeyLease:
        lease_s = self._terms.lease_s
        return KeyLease(self._terms.commands, self._keys, number, lease_s=lease_s, until=until)

    @property
    def _queues(self) -> bool:
        """Whether the line may wait in the queue of a key."""
        return self._terms.waiting is Waiting.HANDOFF and self._terms.may_queue()

    async def _leave_to_others(self) -> None:
        """Pause, so that other processes find the keys free: they do not queue, but try again."""
        if self._terms.waiting is not Waiting.SIMPLE:
            self._busy_s = self._loop.time() + _SPIN.max_s
            await self._pause(_SPIN.max_s)

    async def _pause(self, pause_s: float) -> None:
        """Wait for a message, at most for ``pause_s``."""
        if self._message is not None or not self.wanted:
            return
        self._wake = self._loop.create_future()
        timer = self._loop.call_later(pause_s, self.wake)
        try:
            await self._wake
        finally:
            timer.cancel()
            self._wake = None

    # -- the callers -------------------------------------------------------------------------------

    async def _lend(self, lease: KeyLease, fence: int | None, path: str) -> int:
        """Let callers hold the keys in turn; the number to free, or 0 if it shall expire."""
        turn = 0
        try:
            while turn < TURNS_MAX and not lease.lost and not lease.left_to_expire:
                caller = self._first()
                if caller is None:
                    break
                fence_now = None if fence is None else fence + turn
                self._hold = Hold(lease, fence_now, "local" if turn else path)
                caller.set_result(self._hold)
                await self._hold.ended
                self._busy_s = self._loop.time()
                turn += 1
        except BaseException:
            # Cancelled by the end of the locks. A renewed lease would last as long as the process.
            lease.abandon()
            raise
        await lease.stop()
        if lease.lost:
            _losses.labels(self._terms.name, "lost" if turn else "stale").inc()
        return 0 if lease.left_to_expire else lease.number


def _pause_s(entered: Entered, attempt: int, *, queues: bool) -> float:
    """The time until a line repeats ENTER, in seconds."""
    if not queues:
        return _SPIN.pause_s(attempt)
    if entered.free_in_s < 0:
        return HEARTBEAT_S
    # The present owner's lease ends then, unless it renews it.
    return min(HEARTBEAT_S, entered.free_in_s + EXPIRY_SLACK_S)
