"""The first line of defence on Redis or Valkey: one script for all keys of a batch.

A release wakes the processes that wait for its keys (``common.locking.lane_scripts``).

Redis orders contenders and decides nothing. Every key has a lease after which it expires; an
error, no reply within 100 ms, or one of another form counts as absent, and a circuit breaker skips
Redis while it fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, Final
from weakref import WeakValueDictionary

import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ClusterCrossSlotError

from common.ids import new_id
from common.locking import lane_scripts
from common.locking.grant_channel import ClusterChannels, GrantChannel, open_channel
from common.locking.lane_scripts import CHANNEL, MARK
from common.locking.locks import BusyKey, Grant, Keys, Locks, NoLocks
from common.locking.redis import (
    CALLS_MAX,
    RedisCalls,
    RedisUnavailable,
    Script,
    UnexpectedReply,
    open_redis,
    slot_of,
)
from common.metrics import REGISTRY, from_zero

LEASE_MS: Final = 2_000
"""Longer than a batch takes, shorter than anyone would want to wait for a dead replica."""

_keys = Counter(
    "tally_lock_keys",
    "Lock keys asked for, by outcome: held, busy, absent (Redis unavailable) or cross_slot (a "
    "cluster has the keys of the batch on several nodes).",
    ("outcome",),
    registry=REGISTRY,
)
from_zero(_keys, ("held", "busy", "absent", "cross_slot"))
_log = structlog.stdlib.get_logger()
ABSENT_S: Final = 60.0
"""How long a failed call counts if no other call follows: a scrape has to see it."""

_absent = Gauge(
    "tally_lock_absent",
    "1 while locking goes on without Redis, else 0: its channel, which a PING tries twice in a "
    "second, is not subscribed, or the last call failed, at most 60 s ago.",
    registry=REGISTRY,
)
_opened: set[RedisLocks] = set()
_absent.set_function(lambda: any(locks.absent for locks in tuple(_opened)))


@asynccontextmanager
async def open_locks(url: str) -> AsyncIterator[Locks]:
    """Locks on the Redis at ``url``; an empty URL means no first line."""
    if not url:
        yield NoLocks()
        return
    async with open_redis(url) as redis:
        locks = RedisLocks(redis)
        name = f"{CHANNEL}{locks.process}"
        async with open_channel(redis, url, name, locks.freed, locks.wake_all) as channel:
            locks.channel = channel
            _opened.add(locks)
            try:
                yield locks
            finally:
                _opened.remove(locks)


class RedisLocks:
    """Locks on one Redis. Call it from tasks that are not cancelled (a lane's own)."""

    def __init__(self, redis: Redis | RedisCluster) -> None:
        self.process = new_id()
        self.channel: GrantChannel | ClusterChannels | None = None
        self._redis = redis
        self._acquire = Script(redis, lane_scripts.ACQUIRE)
        self._release = Script(redis, lane_scripts.RELEASE)
        self._calls = RedisCalls(redis, "redis_lock_absent")
        self._turns = asyncio.Semaphore(CALLS_MAX)
        """Of the parts of batches in a cluster, which need a connection each."""
        self._cross_slot_logged = False
        self._busy: WeakValueDictionary[str, BusyKey] = WeakValueDictionary()
        """Those that somebody waits for."""
        self._asking: dict[str, set[str]] = {}
        """Of each acquire in flight, by its token: the keys that were freed since it was sent. Its
        reply may arrive later than the message of such a release."""
        self._woken = 0
        """How often all who wait were woken."""
        self._failed_s: float | None = None
        """The monotonic time of the last call, if it failed."""

    @property
    def absent(self) -> bool:
        """Whether Redis does not reply, as far as is known without a call."""
        if self.channel is not None and not self.channel.ready:
            return True
        return self._failed_s is not None and time.monotonic() - self._failed_s < ABSENT_S

    async def acquire(self, wanted: Collection[Keys]) -> Grant:
        """Take the keys of each command that can have all of its own."""
        parts = self._parts(wanted)
        token = f"{MARK}{new_id()}"
        freed: set[str] = set()
        woken = self._woken
        self._asking[token] = freed
        try:
            taken = await self._calls.call(
                "acquire_locks",
                lambda: self._send(parts, token),
                lambda reply: _read_taken(reply, parts),
            )
        except RedisUnavailable:
            # If they were taken and the reply was lost, they expire; others wait 50 ms for them.
            return self._no_grant(token, wanted, "absent")
        finally:
            del self._asking[token]
        if taken is None:
            self._log_cross_slot()
            return self._no_grant(token, wanted, "cross_slot")
        _keys.labels("held").inc(len(taken.acquired))
        _keys.labels("busy").inc(len(set(taken.busy.values())))
        _keys.labels("absent").inc(taken.absent)
        self._failed_s = time.monotonic() if taken.absent else None
        missed = self._woken != woken
        busy = {
            keys: self._busy_key(key, freed=missed or key in freed)
            for keys, key in taken.busy.items()
        }
        return Grant(token, taken.acquired, busy)

    def _busy_key(self, key: str, *, freed: bool) -> BusyKey:
        busy = self._busy.get(key)
        if busy is None or busy.freed.is_set():
            busy = self._busy[key] = BusyKey(key)
        if freed:
            busy.freed.set()
        return busy

    def freed(self, key: str) -> None:
        """Wake those who wait for the key: its owner has freed it."""
        for asking in self._asking.values():
            asking.add(key)
        busy = self._busy.get(key)
        if busy is not None:
            busy.freed.set()

    def wake_all(self) -> None:
        """Wake all who wait, and those whose reply is on its way: messages may have been missed."""
        self._woken += 1
        for busy in self._busy.values():
            busy.freed.set()

    async def release(self, grant: Grant) -> None:
        """Free the keys that the grant still owns."""
        if not grant.acquired:
            return
        parts = self._by_slot(grant.acquired)
        try:
            await self._calls.call(
                "release_locks",
                lambda: self._send_release(parts, grant.token),
                lambda reply: _read_freed(reply, len(grant.acquired)),
            )
        except RedisUnavailable:
            self._failed_s = time.monotonic()
        else:
            self._failed_s = None

    def _no_grant(self, token: str, wanted: Collection[Keys], outcome: str) -> Grant:
        self._failed_s = time.monotonic()
        _keys.labels(outcome).inc(len(set(chain.from_iterable(wanted))))
        return Grant(token, frozenset())

    def _parts(self, wanted: Collection[Keys]) -> list[_Part]:
        """What one script takes: all, or in a cluster the keys of one slot."""
        if not isinstance(self._redis, RedisCluster):
            return [_Part([(keys, keys) for keys in wanted])]
        by_slot: dict[int, list[tuple[Keys, Keys]]] = {}
        for keys in wanted:
            for same in self._by_slot(keys):
                by_slot.setdefault(slot_of(same[0]), []).append((keys, tuple(same)))
        return [_Part(commands) for commands in by_slot.values()]

    def _by_slot(self, keys: Collection[str]) -> list[list[str]]:
        """The keys that one script can have: all, or those of one slot of a cluster."""
        if not isinstance(self._redis, RedisCluster):
            return [list(keys)]
        return [list(same) for _, same in groupby(sorted(keys, key=slot_of), slot_of)]

    async def _send(self, parts: Sequence[_Part], token: str) -> object:
        """The replies to the parts; _CROSS_SLOT from a server that has not all of the keys.

        That is no failure: a node of a cluster replies, and would grant the keys one by one.
        """
        sent = (
            self._acquire(part.keys, token, LEASE_MS, self.process, *part.sizes) for part in parts
        )
        if len(parts) > 1:
            return await self._replies(sent)
        try:
            return [await next(sent)]
        except ClusterCrossSlotError:
            return _CROSS_SLOT

    async def _send_release(self, parts: Sequence[Sequence[str]], token: str) -> object:
        if len(parts) == 1:
            return await self._release(parts[0], token)
        replies = await self._replies(self._release(part, token) for part in parts)
        return sum(reply for reply in replies if type(reply) is int)

    async def _replies(self, sent: Iterable[Awaitable[object]]) -> list[Any]:
        """The replies to the parts of a batch, or errors. Raises if none has a reply.

        With one node of a cluster away, the keys of the others are still locked.
        """

        async def in_turn(part: Awaitable[object]) -> object:
            async with self._turns:
                return await part

        replies = await asyncio.gather(*map(in_turn, sent), return_exceptions=True)
        errors = [reply for reply in replies if isinstance(reply, BaseException)]
        if len(errors) == len(replies):
            raise errors[0]
        return replies

    def _log_cross_slot(self) -> None:
        if not self._cross_slot_logged:
            self._cross_slot_logged = True
            _log.warning(
                "redis_lock_cross_slot",
                reason="Redis is a cluster: a batch that needs several locks gets none",
            )


_CROSS_SLOT: Final = object()


class _Part:
    """What one ACQUIRE asks for: of some commands, all keys or those of one slot."""

    def __init__(self, commands: Sequence[tuple[Keys, Keys]]) -> None:
        """``commands``: all keys of each one, and those of this part."""
        singles = [each for each in commands if len(each[1]) == 1]
        several = [each for each in commands if len(each[1]) > 1]
        self.commands = [*singles, *several]
        self.keys = [key for _, asked in self.commands for key in asked]
        self.sizes = (len(singles), *(len(asked) for _, asked in several))

    def read(self, reply: object) -> list[int]:
        """The place of each command's busy key in ``keys``, from 1; 0 of one that owns its keys.

        Raises UnexpectedReply.
        """
        if not isinstance(reply, list) or len(reply) != len(self.commands):
            raise UnexpectedReply
        last = 0
        for (_, asked), busy in zip(self.commands, reply, strict=True):
            first, last = last, last + len(asked)
            # The type counts too: True == 1.
            if type(busy) is not int or not (busy == 0 or first < busy <= last):
                raise UnexpectedReply
        return reply


@dataclass(frozen=True, slots=True)
class _Taken:
    acquired: frozenset[str]
    busy: dict[Keys, str]
    absent: int
    """The number of keys in parts without a right reply."""


def _read_taken(replies: object, parts: Sequence[_Part]) -> _Taken | None:
    """What the parts have granted; None for _CROSS_SLOT.

    With several parts, one without a right reply grants nothing. Raises UnexpectedReply.
    """
    if replies is _CROSS_SLOT:
        return None
    assert isinstance(replies, list)
    acquired: set[str] = set()
    busy: dict[Keys, str] = {}
    absent = 0
    for part, reply in zip(parts, replies, strict=True):
        try:
            read = part.read(reply)
        except UnexpectedReply:
            if len(parts) == 1:
                raise
            absent += len(set(part.keys))
            continue
        for (keys, asked), place in zip(part.commands, read, strict=True):
            if place:
                busy.setdefault(keys, part.keys[place - 1])
            else:
                acquired.update(asked)
    return _Taken(frozenset(acquired), busy, absent)


def _read_freed(reply: object, owned: int) -> int:
    """How many keys were freed. Raises UnexpectedReply."""
    if type(reply) is not int or not 0 <= reply <= owned:
        raise UnexpectedReply
    return reply
