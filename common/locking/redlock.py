"""Redlock: a lock on several independent Redis, of which more than half have to grant it.

It survives the loss of some of them, and **gives no fence**, since they share no counter: its
holders need a row lock or a version in the database. Nobody queues, so that callers try again after
a pause. A node that restarts empty has lost its grants: keep it away for the length of a lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, TypeVar

from common.ids import new_id
from common.locking.key_commands import Entered, Keys, NodeCommands
from common.locking.key_line import Waiting
from common.locking.key_locks import KeyLocks
from common.locking.lock_errors import InvalidLock
from common.locking.lock_limits import LEASE_S
from common.locking.redis import NotSent, RedisUnavailable, open_redis
from common.urls import redis_nodes

T = TypeVar("T")

NODES_LEAST: Final = 3
DRIFT_PART: Final = 0.01
DRIFT_LEAST_S: Final = 0.002
"""The clocks may differ by this part of a lease, and by this."""


class MajorityCommands:
    """The commands on all nodes at once, each with its own time limit."""

    def __init__(self, nodes: Sequence[NodeCommands], lease_s: float) -> None:
        """The nodes share one ``process`` name."""
        self.process = nodes[0].process
        self.drift_s = lease_s * DRIFT_PART + DRIFT_LEAST_S
        self._nodes = nodes
        self._quorum = len(nodes) // 2 + 1

    def new_number(self) -> int:
        return self._nodes[0].new_number()

    async def enter(self, keys: Keys, number: int, *, waits: bool) -> Entered:  # noqa: ARG002
        replies = await self._all(lambda node: node.enter(keys, number, waits=False))
        granted = sum(reply.granted for reply in replies)
        if granted < self._quorum:
            # On all nodes: a grant whose reply was lost is taken back too.
            await self._all(lambda node: node.free(keys, number))
            self._require_quorum(replies)
        free_in_s = max(reply.free_in_s for reply in replies)
        return Entered(granted >= self._quorum, None, free_in_s, replies[0].server_ms)

    async def pass_on(self, keys: Keys, owner: int, number: int, *, waits: bool) -> Entered:
        await self.free(keys, owner)
        return await self.enter(keys, number, waits=waits)

    async def renew(self, keys: Keys, number: int) -> bool:
        replies = await self._all(lambda node: node.renew(keys, number))
        renewed = sum(replies)
        if renewed < self._quorum:
            self._require_quorum(replies)
        return renewed >= self._quorum

    async def free(self, keys: Keys, number: int) -> None:
        self._require_quorum(await self._all(lambda node: node.free(keys, number)))

    async def _all(self, call: Callable[[NodeCommands], Awaitable[T]]) -> list[T]:
        """The replies of those nodes that reply, all asked at once, each with its time limit."""
        replies = await asyncio.gather(*map(call, self._nodes), return_exceptions=True)
        failed = [each for each in replies if isinstance(each, BaseException)]
        for error in failed:
            if not isinstance(error, RedisUnavailable):
                raise error
        if all(isinstance(each, NotSent) for each in replies):
            raise NotSent
        return [each for each in replies if not isinstance(each, BaseException)]

    def _require_quorum(self, replies: Sequence[object]) -> None:
        if len(replies) < self._quorum:
            raise RedisUnavailable


def _is_cluster(url: str) -> bool:
    nodes = redis_nodes(url)
    return nodes is not None and not nodes.service


@asynccontextmanager
async def open_redlock(
    urls: Sequence[str], name: str, *, waiting: Waiting = Waiting.SPIN, lease_s: float = LEASE_S
) -> AsyncIterator[KeyLocks]:
    """Locks on the majority of the Redis at ``urls``: three or more, which share nothing.

    The other parameters are those of ``open_key_locks``. Raises InvalidLock.
    """
    if len(set(urls)) != len(urls) or len(urls) < NODES_LEAST:
        raise InvalidLock(f"urls must be {NODES_LEAST} or more different ones")
    if any(map(_is_cluster, urls)):
        raise InvalidLock("urls must not be those of a cluster, whose nodes are not independent")
    if waiting is Waiting.HANDOFF:
        raise InvalidLock("waiting must be SPIN or SIMPLE: independent nodes have no common queue")
    async with AsyncExitStack() as exits:
        process = new_id()
        nodes = [
            NodeCommands(await exits.enter_async_context(open_redis(url)), lease_s, process=process)
            for url in urls
        ]
        locks = KeyLocks(name, MajorityCommands(nodes, lease_s), waiting=waiting, lease_s=lease_s)
        exits.push_async_callback(locks.close)
        yield locks
