"""Limits that all replicas share, in Redis: callers of a moment have one script call together.

A script call for each caller would cost a quarter of a deduction. So callers gather for GATHER_S,
and while a call is in flight; each key is sent once, with the number of its callers. Callers wait,
and a task sends: a caller that goes away ends no command (``common.locking.redis.open_redis``).

Time is Redis' own: the clocks of the replicas need not agree. If it is set back, by hand or by a
failover, a key waits for one burst at most.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from prometheus_client import Counter, Histogram
from redis.asyncio import Redis, RedisCluster

from common.errors import Overloaded
from common.gcra import Rate
from common.locking.redis import RedisCalls, RedisUnavailable, Script, UnexpectedReply
from common.metrics import REGISTRY, from_zero

GATHER_S: Final = 0.005
"""How long callers wait for others. Only a user above a replica's share waits at all."""
KEYS_MAX: Final = 256
"""Keys in one script call."""
WAITING_MAX: Final = 4_096
"""Callers that wait; beyond them, callers are refused with OVERLOADED."""
_US_NS: Final = 1_000
# In a cluster, one script has the keys of one slot only.
_PREFIX: Final = "{rate}:"

TAKE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local reply = {}
for i, key in ipairs(KEYS) do
  local interval, burst = tonumber(ARGV[4 * i - 3]), tonumber(ARGV[4 * i - 2])
  local asked, returned = tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i])
  local tat = tonumber(redis.call('GET', key) or now)
  tat = math.max(now, math.min(tat, now + burst) - returned * interval)
  local granted = math.min(asked, math.floor((now + burst - tat) / interval))
  tat = tat + granted * interval
  if tat > now then
    redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000))
  else
    redis.call('DEL', key)
  end
  reply[2 * i - 1] = granted
  reply[2 * i] = math.max(0, tat + interval - now - burst)
end
return reply
"""
"""Of each key: interval and burst in microseconds, how many ask, and how many of those that were
counted before are given back. The reply has, of each key, how many are admitted, and after how many
microseconds the next one is. A key is a TAT (``common.gcra``), and expires when it is over."""

_decisions = Counter(
    "tally_rate_limit_decisions",
    "Decisions about calls of users and addresses above this replica's share of their limit, by "
    "outcome: admitted or refused by the limit that all replicas share, or absent (Redis "
    "unavailable: the replica limits at its share).",
    ("outcome",),
    registry=REGISTRY,
)
from_zero(_decisions, ("admitted", "refused", "absent"))
_sizes = Histogram(
    "tally_rate_limit_batch_calls",
    "Calls about which one script call decided.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    registry=REGISTRY,
)


@dataclass(slots=True)
class _Asked:
    """What is asked about one key."""

    interval_us: int
    burst_us: int
    callers: list[asyncio.Future[int | None]] = field(default_factory=list)
    returned: int = 0


class SharedLimits:
    """The limits in one Redis, as one replica asks for them."""

    def __init__(self, redis: Redis | RedisCluster) -> None:
        self._take = Script(redis, TAKE)
        self._calls = RedisCalls(redis, "redis_limit_absent")
        self._asked: dict[str, _Asked] = {}
        """By key, in order of arrival."""
        self._waiting = 0
        self._sending: asyncio.Task[None] | None = None

    @property
    def absent(self) -> bool:
        """Whether Redis is not asked for now, since it failed several times in a row."""
        return self._calls.refuses

    async def take(self, key: str, rate: Rate) -> int | None:
        """0 if one more of the key is admitted, or after how many ns it would be.

        None: Redis is away. Raises Overloaded.
        """
        if self._waiting >= WAITING_MAX:
            raise Overloaded(limit="rate")
        answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._of(key, rate).callers.append(answer)
        self._begin()
        self._waiting += 1
        try:
            return await answer
        finally:
            self._waiting -= 1

    def give_back(self, key: str, rate: Rate) -> None:
        """Take back one that was admitted. It is lost if Redis is away."""
        self._of(key, rate).returned += 1
        self._begin()

    async def close(self) -> None:
        """Wait until nothing is on its way."""
        if self._sending is not None:
            await asyncio.wait({self._sending})

    def _of(self, key: str, rate: Rate) -> _Asked:
        asked = self._asked.get(key)
        if asked is None:
            interval_us = max(1, rate.interval_ns // _US_NS)
            asked = self._asked[key] = _Asked(interval_us, rate.burst * interval_us)
        return asked

    def _begin(self) -> None:
        if self._sending is None:
            # In a context of its own: the task outlives the call that happened to start it.
            loop = asyncio.get_running_loop()
            self._sending = loop.create_task(self._send_all(), context=contextvars.Context())

    async def _send_all(self) -> None:
        batch: dict[str, _Asked] = {}
        try:
            while self._asked:
                await asyncio.sleep(GATHER_S)
                batch = {key: self._asked.pop(key) for key in list(islice(self._asked, KEYS_MAX))}
                await self._send(batch)
        finally:
            # Nobody waits for ever, whatever ended the task.
            for asked in (*batch.values(), *self._asked.values()):
                _answer(asked.callers, None)
            self._asked.clear()
            self._sending = None

    async def _send(self, batch: dict[str, _Asked]) -> None:
        callers = [[one for one in asked.callers if not one.done()] for asked in batch.values()]
        arguments: list[int] = []
        for asked, waiting in zip(batch.values(), callers, strict=True):
            arguments += (asked.interval_us, asked.burst_us, len(waiting), asked.returned)
        keys = [f"{_PREFIX}{key}" for key in batch]
        counts = [len(waiting) for waiting in callers]
        _sizes.observe(sum(counts))
        try:
            replies = await self._calls.call(
                "take_of_limits",
                lambda: self._take(keys, *arguments),
                lambda reply: _read(reply, counts),
            )
        except RedisUnavailable:
            _decisions.labels("absent").inc(sum(counts))
            for waiting in callers:
                _answer(waiting, None)
            return
        for waiting, (granted, wait_us) in zip(callers, replies, strict=True):
            _decisions.labels("admitted").inc(granted)
            _decisions.labels("refused").inc(len(waiting) - granted)
            _answer(waiting[:granted], 0)
            _answer(waiting[granted:], max(1, wait_us) * _US_NS)


def _answer(callers: Sequence[asyncio.Future[int | None]], wait_ns: int | None) -> None:
    for caller in callers:
        if not caller.done():
            caller.set_result(wait_ns)


def _read(reply: object, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Of each key, how many are admitted, and the microseconds until the next one.

    Raises UnexpectedReply.
    """
    if not isinstance(reply, list) or len(reply) != 2 * len(counts):
        raise UnexpectedReply
    read = list(zip(reply[::2], reply[1::2], strict=True))
    for (granted, wait_us), count in zip(read, counts, strict=True):
        if type(granted) is not int or type(wait_us) is not int:
            raise UnexpectedReply
        if not 0 <= granted <= count or wait_us < 0:
            raise UnexpectedReply
    return read
