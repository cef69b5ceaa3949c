"""The commands of the key locks as typed calls."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from redis.asyncio import Redis, RedisCluster

from common.ids import new_id
from common.locking import key_scripts
from common.locking.redis import RedisCalls, Script, UnexpectedReply

T = TypeVar("T")
Keys = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entered:
    """The reply to ENTER."""

    granted: bool
    fence: int | None
    """The first of TURNS_MAX fences; None if not granted, and from a majority."""
    free_in_s: float
    """When the lease of the present owner ends, unless it is renewed."""
    server_ms: int
    """The server's clock."""


class KeyCommands(Protocol):
    """Commands about sets of keys. Call them from tasks that are not cancelled.

    Each raises RedisUnavailable: then its outcome is unknown, and ends with the lease; or NotSent.
    """

    process: str
    drift_s: float
    """By how much the holder's clock may lag behind the servers' in one lease."""

    def new_number(self) -> int:
        """The number of an acquisition."""

    async def enter(self, keys: Keys, number: int, *, waits: bool) -> Entered:
        """Own all keys or none. ``waits``: if none, wait in the queue of a busy one."""

    async def pass_on(self, keys: Keys, owner: int, number: int, *, waits: bool) -> Entered:
        """``free`` the owner, then ``enter`` behind all others, in one round trip."""

    async def renew(self, keys: Keys, number: int) -> bool:
        """Whether all keys are still owned; their lease begins anew."""

    async def free(self, keys: Keys, number: int) -> None:
        """Give keys and places in queues to the next waiters."""


class NodeCommands:
    """The commands on one Redis: a server, the primary that Sentinel names, or a cluster."""

    drift_s = 0.0

    def __init__(
        self,
        redis: Redis | RedisCluster,
        lease_s: float,
        *,
        process: str = "",
        event: str = "redis_key_lock_absent",
    ) -> None:
        """``event``: the log event of a failed call."""
        self.process = process or new_id()
        self._lease_ms = round(lease_s * 1000)
        self._numbers = itertools.count(1)
        self._commands = itertools.count(1)
        """Numbers of commands. Each reply repeats the number of its command. Without it, a
        connection that is one reply behind, since a proxy has doubled one, would grant what Redis
        refuses."""
        self._calls = RedisCalls(redis, event)
        self._enter = Script(redis, key_scripts.ENTER)
        self._pass_on = Script(redis, key_scripts.PASS_ON)
        self._renew = Script(redis, key_scripts.RENEW)
        self._free = Script(redis, key_scripts.FREE)

    def new_number(self) -> int:
        return next(self._numbers)

    async def enter(self, keys: Keys, number: int, *, waits: bool) -> Entered:
        command = next(self._commands)
        arguments = (self._lease_ms, self._id(number), command, int(waits))
        return await self._call(
            "enter_lock",
            lambda: self._enter(key_scripts.redis_keys(keys), *arguments),
            lambda reply: _read_entered(reply, command),
        )

    async def pass_on(self, keys: Keys, owner: int, number: int, *, waits: bool) -> Entered:
        command = next(self._commands)
        arguments = (self._lease_ms, self._id(number), command, int(waits), self._id(owner))
        return await self._call(
            "pass_on_lock",
            lambda: self._pass_on(key_scripts.redis_keys(keys), *arguments),
            lambda reply: _read_entered(reply, command),
        )

    async def renew(self, keys: Keys, number: int) -> bool:
        command = next(self._commands)
        return await self._call(
            "renew_lock",
            lambda: self._renew(keys, self._lease_ms, self._id(number), command),
            lambda reply: _read_count(reply, command, len(keys)) == len(keys),
            bypass=True,
        )

    async def free(self, keys: Keys, number: int) -> None:
        command = next(self._commands)
        arguments = (self._lease_ms, self._id(number), command)
        await self._call(
            "free_lock",
            lambda: self._free(key_scripts.redis_keys(keys), *arguments),
            lambda reply: _read_count(reply, command, len(keys)),
            bypass=True,
        )

    def _id(self, number: int) -> str:
        return f"{self.process}:{number}"

    async def _call(
        self,
        operation: str,
        send: Callable[[], Awaitable[object]],
        read: Callable[[object], T],
        *,
        bypass: bool = False,
    ) -> T:
        return await self._calls.call(operation, send, read, bypass=bypass)


def _read_entered(reply: object, command: int) -> Entered:
    """Raises UnexpectedReply, for the reply to another command too."""
    replied, fence, free_in_ms, server_ms = _integers(reply, 4)
    if replied != command or fence < 0 or server_ms <= 0:
        raise UnexpectedReply
    return Entered(fence > 0, fence or None, free_in_ms / 1000, server_ms)


def _read_count(reply: object, command: int, count_max: int) -> int:
    replied, count = _integers(reply, 2)
    if replied != command or not 0 <= count <= count_max:
        raise UnexpectedReply
    return count


def _integers(reply: object, count: int) -> Sequence[int]:
    if not isinstance(reply, list) or len(reply) != count:
        raise UnexpectedReply
    # The type counts too: True == 1.
    if not all(type(each) is int for each in reply):
        raise UnexpectedReply
    return reply
