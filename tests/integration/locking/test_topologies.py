"""Locks and marks on a Redis that Sentinel or a cluster provides: all of it real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from common.ids import new_id
from common.locking import redis as redis_calls
from common.locking.key_line import Waiting
from common.locking.key_locks import KeyLocks, open_key_locks
from common.locking.lock_errors import InvalidLock
from common.locking.marks import open_marks
from common.locking.redis import connection_problem, slot_of
from common.locking.redis_lock import open_locks
from tests.integration.locking.conftest import settled
from tests.support.redis_topologies import Nodes, three_nodes, watched
from tests.support.time_limits import LONG_S
from tests.support.waits import until_true


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_calls, "TIMEOUT_S", 2.0)
    monkeypatch.setattr(redis_calls, "OPEN_S", 0.02)


@asynccontextmanager
async def two_replicas(url: str) -> AsyncIterator[list[KeyLocks]]:
    async with AsyncExitStack() as exits:
        replicas = [
            await exits.enter_async_context(open_key_locks(url, "test", waiting=Waiting.HANDOFF))
            for _ in range(2)
        ]
        for locks in replicas:
            await until_true(locks._channel_ready)
        yield replicas


async def pass_to_and_fro(replicas: list[KeyLocks], keys: list[str]) -> list[int]:
    """Hold the keys in each replica in turn, each waiting for the other; the fences."""
    fences = []
    for turn in range(4):
        first, second = replicas[turn % 2], replicas[(turn + 1) % 2]
        hold = await first.hold(keys, wait_s=LONG_S, required=True).__aenter__()
        waiting = asyncio.create_task(second.hold(keys, wait_s=LONG_S, required=True).__aenter__())
        await asyncio.sleep(0.01)
        first.ended(hold)
        next_hold = await waiting
        second.ended(next_hold)
        fences += [hold.fence or 0, next_hold.fence or 0]
        await settled(first, second)
    return fences


async def until_guarded(replicas: list[KeyLocks], key: str) -> None:
    """Until each replica has found the server that has the key now."""
    async with asyncio.timeout(LONG_S):
        for locks in replicas:
            guarded = False
            while not guarded:
                async with locks.hold([key], wait_s=LONG_S) as hold:
                    guarded = hold.guarded
                await settled(locks)
                await asyncio.sleep(0.01)
        for locks in replicas:
            await until_true(locks._channel_ready)


async def test_sentinel_names_the_primary_and_after_a_failover_the_new_one(
    tmp_path: Path, key: str
) -> None:
    async with watched(tmp_path) as servers, two_replicas(servers.url) as replicas:
        assert await connection_problem(servers.url) == ""
        before = await pass_to_and_fro(replicas, [key])
        servers.primary.stop()
        await until_guarded(replicas, key)
        after = await pass_to_and_fro(replicas, [key])
        # The new primary may not have had the last fence.
        assert [*before, *after] == sorted({*before, *after})


async def test_in_a_cluster_keys_of_all_nodes_are_locked(tmp_path: Path) -> None:
    async with three_nodes(tmp_path) as nodes:
        assert await connection_problem(nodes.url) == ""
        async with two_replicas(nodes.url) as replicas:
            for _ in range(6):
                fences = await pass_to_and_fro(replicas, [f"lock:{new_id()}"])
                assert fences == sorted(set(fences))
            tag = new_id()
            await pass_to_and_fro(replicas, [f"seat:{{{tag}}}:{label}" for label in "AB"])
            with pytest.raises(InvalidLock, match="hash tag"):
                replicas[0].hold([f"lock:{new_id()}" for _ in range(9)], wait_s=1.0)
        await _lanes_and_marks(nodes.url)
        await _lanes_that_share_a_key(nodes.url)
        await _lanes_without_a_node(nodes)


async def test_in_a_cluster_a_slot_that_moves_is_followed(tmp_path: Path, key: str) -> None:
    async with three_nodes(tmp_path) as nodes, two_replicas(nodes.url) as replicas:
        # The fences of a slot move with it; here it is moved while it is empty.
        for _ in range(2):
            await nodes.move(slot_of(key))
            await until_guarded(replicas, key)
            fences = await pass_to_and_fro(replicas, [key])
            assert fences == sorted(set(fences))
            await nodes.empty(key)


async def _lanes_without_a_node(nodes: Nodes) -> None:
    """A batch has keys on all nodes: those of the others are still locked and freed."""
    keys = [new_id() for _ in range(20)]
    async with open_locks(nodes.url) as locks:
        assert (await locks.acquire([("warm",)])).acquired
        away = nodes.servers[0]
        lost = {key for key in keys if await nodes.owner_of(slot_of(key)) is away}
        away.stop()
        grant = await locks.acquire([(key,) for key in keys])
        assert grant.acquired == set(keys) - lost != set(keys)
        assert not grant.busy
        await locks.release(grant)
        assert (await locks.acquire([(key,) for key in keys])).acquired == set(keys) - lost


async def _lanes_that_share_a_key(url: str) -> None:
    """Of orders of many users for one seat, each part has that seat's key several times."""
    seat, users = new_id(), [new_id() for _ in range(20)]
    async with open_locks(url) as locks:
        grant = await locks.acquire([(user, seat) for user in users])
        assert grant.acquired == {seat, *users}
        assert not grant.busy
        await locks.release(grant)


async def _lanes_and_marks(url: str) -> None:
    keys = [new_id() for _ in range(20)]
    async with open_locks(url) as locks, open_marks(url) as marks:
        grant = await locks.acquire([(key,) for key in keys])
        assert grant.acquired == set(keys)
        several = tuple(keys[:3])
        other = await locks.acquire([*((key,) for key in keys[:3]), ("free",), ("free", *several)])
        assert other.acquired == {"free"}
        assert {key.key for key in other.busy.values()} == set(keys[:3])
        await locks.release(grant)
        async with asyncio.timeout(LONG_S):
            for busy in other.busy.values():
                await busy.freed.wait()
        await locks.release(other)
        assert (await locks.acquire([(key,) for key in keys])).acquired == set(keys)
        assert await marks.begin("mark:1", "one") is None
        assert await marks.begin("mark:1", "two") == "IN_PROGRESS:one"
