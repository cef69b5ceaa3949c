"""Redlock: more than half of the nodes grant a lock, whatever happens to the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from common.locking import redis as redis_calls
from common.locking.key_line import Waiting
from common.locking.key_locks import KeyLocks
from common.locking.lock_errors import InvalidLock, LockBusy, LockUnavailable
from common.locking.redlock import open_redlock
from deploy.local.valkey import ValkeyServer
from tests.integration.locking.conftest import counting, settled
from tests.support.time_limits import LONG_S

NODES = 3


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[ValkeyServer]]:
    servers = [ValkeyServer(tmp_path / str(number)) for number in range(NODES)]
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
async def replicas(
    nodes: list[ValkeyServer], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[KeyLocks]]:
    monkeypatch.setattr(redis_calls, "OPEN_S", 0.01)
    monkeypatch.setattr(redis_calls, "TIMEOUT_S", LONG_S)
    async with AsyncExitStack() as exits:
        urls = [server.url for server in nodes]
        yield [
            await exits.enter_async_context(open_redlock(urls, "test", waiting=Waiting.SIMPLE))
            for _ in range(2)
        ]


async def free_again(replicas: list[KeyLocks], key: str) -> None:
    for locks in replicas:
        async with locks.hold([key], required=True):
            pass
        await settled(locks)


async def test_a_majority_excludes_and_gives_no_fence(replicas: list[KeyLocks], key: str) -> None:
    async with replicas[0].hold([key], required=True) as hold:
        assert hold.guarded
        assert hold.fence is None
        with pytest.raises(LockBusy):
            await replicas[1].hold([key], required=True).__aenter__()
    await settled(replicas[0])
    await free_again(replicas, key)


async def test_a_minority_that_is_away_changes_nothing(
    replicas: list[KeyLocks], nodes: list[ValkeyServer], key: str
) -> None:
    nodes[0].stop()
    async with replicas[0].hold([key], required=True):
        with pytest.raises(LockBusy):
            await replicas[1].hold([key], required=True).__aenter__()
    await settled(replicas[0])
    await free_again(replicas, key)
    nodes[1].stop()
    with pytest.raises(LockUnavailable):
        await replicas[0].hold([key], required=True).__aenter__()
    async with replicas[0].hold([key]) as hold:
        assert not hold.guarded


async def test_a_loser_rolls_back_on_all_nodes(
    replicas: list[KeyLocks], nodes: list[ValkeyServer], key: str
) -> None:
    """Two of three nodes are another's: the third must not stay locked."""
    for node in nodes[:2]:
        async with Redis.from_url(node.url) as client:
            await client.set(key, "another:1")
    with pytest.raises(LockBusy):
        await replicas[0].hold([key], required=True).__aenter__()
    await settled(replicas[0])
    async with Redis.from_url(nodes[2].url) as client:
        assert not await client.exists(key)


COMPARED = "UPDATE counted SET number = $3 WHERE key = $1 AND number = $2"
NOT_COMPARED = "UPDATE counted SET number = $3 WHERE key = $1 AND $2::bigint >= 0"


@pytest.mark.parametrize("write", [COMPARED, NOT_COMPARED], ids=["compared", "control"])
async def test_a_node_restarted_empty_is_why_the_database_decides(
    replicas: list[KeyLocks], nodes: list[ValkeyServer], key: str, counted: str, write: str
) -> None:
    """It lets in a second holder, and neither has a fence. A write that compares what was read is
    refused; without the comparison one of two updates is lost."""
    async with Redis.from_url(nodes[0].url) as client:
        await client.set(key, "another:1")
    async with replicas[0].hold([key], required=True) as first:
        # The nodes 1 and 2 have granted it. One forgets it, and the other's owner of node 0 ends.
        async with Redis.from_url(nodes[0].url) as client:
            await client.delete(key)
        nodes[1].stop()
        nodes[1].start()
        async with (
            replicas[1].hold([key], required=True) as second,
            counting(counted, key) as database,
        ):
            assert (first.fence, second.fence) == (None, None)
            read = await database.fetchval("SELECT number FROM counted WHERE key = $1", key)
            written = [await database.execute(write, key, read, read + 1) for _ in range(2)]
            number = await database.fetchval("SELECT number FROM counted WHERE key = $1", key)
    accepted = written.count("UPDATE 1")
    assert accepted == (1 if write == COMPARED else 2)
    assert number == 1


@pytest.mark.parametrize("urls", [[], ["redis://a", "redis://b"], ["redis://a"] * 3])
async def test_fewer_than_three_different_nodes_are_refused(urls: list[str]) -> None:
    with pytest.raises(InvalidLock):
        async with open_redlock(urls, "test"):
            pass


async def test_a_cluster_is_no_node() -> None:
    urls = [f"redis+cluster://host:{port}" for port in (1, 2, 3)]
    with pytest.raises(InvalidLock, match="cluster"):
        async with open_redlock(urls, "test"):
            pass


async def test_a_common_queue_of_independent_nodes_is_refused() -> None:
    urls = [f"redis://{number}" for number in range(3)]
    with pytest.raises(InvalidLock):
        async with open_redlock(urls, "test", waiting=Waiting.HANDOFF):
            pass
