"""A Redis that is demoted, promoted or a cluster: what it refuses is not locked, and comes back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from common.ids import new_id
from common.locking import redis as redis_calls
from common.locking.marks import open_marks
from common.locking.redis_lock import open_locks
from common.metrics import REGISTRY
from deploy.local.valkey import ValkeyServer
from tests.support.fake_server import TcpProxy


@pytest.fixture(autouse=True)
def short_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_calls, "OPEN_S", 0.02)


async def demote(url: str) -> None:
    """Make the server a replica, of a primary that is not there."""
    async with Redis.from_url(url) as client:
        await client.replicaof("127.0.0.1", 1)


async def promote(url: str) -> None:
    async with Redis.from_url(url) as client:
        await client.replicaof("NO", "ONE")


@pytest.fixture
async def urls(tmp_path: Path) -> AsyncIterator[list[str]]:
    """Two primaries with one password."""
    with ValkeyServer(tmp_path / "one") as one, ValkeyServer(tmp_path / "two") as two:
        async with Redis.from_url(two.url) as client:
            await client.config_set("requirepass", urlsplit(one.url).password or "")
        yield [one.url, one.url.replace(f":{one.port}/", f":{two.port}/")]


async def test_after_a_failover_locks_and_marks_are_those_of_the_new_primary(
    urls: list[str],
) -> None:
    """Connections to the demoted primary stay open: it refuses what is written through them."""
    at = [f"127.0.0.1:{urlsplit(url).port}" for url in urls]
    async with TcpProxy.to(at[0]) as proxy:
        url = urls[0].replace(at[0], proxy.address)
        async with open_locks(url) as locks, open_marks(url) as marks:

            async def until_used() -> None:
                """Until a lock and a mark are set."""
                key = new_id()
                while not (await locks.acquire([(key,)])).acquired:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                while not await marks.begin(f"mark:{key}", new_id()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

            await until_used()
            for old, new in ((0, 1), (1, 0)):
                await demote(urls[old])
                for _ in range(5):
                    assert not (await locks.acquire([(new_id(),)])).acquired
                    assert await marks.begin(new_id(), "one") is None
                proxy.target = at[new]
                await promote(urls[new])
                await until_used()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A cluster of one node that has no slots yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"cluster-enabled yes\ncluster-port {port}\n"
    with ValkeyServer(tmp_path, options=options) as server:
        yield server


def cross_slot() -> float:
    """How many keys were not locked because they were on several nodes."""
    return REGISTRY.get_sample_value("tally_lock_keys_total", {"outcome": "cross_slot"}) or 0.0


async def test_in_a_cluster_several_keys_are_not_locked_and_one_is(cluster: ValkeyServer) -> None:
    one, two = new_id(), new_id()
    async with open_locks(cluster.url) as locks, Redis.from_url(cluster.url) as opened:
        client: Any = opened
        # Nobody serves the slots: CLUSTERDOWN.
        assert not (await locks.acquire([(one,)])).acquired
        await client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        while not (grant := await locks.acquire([(one,)])).acquired:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await locks.release(grant)
        counted = cross_slot()
        with capture_logs() as logs:
            for _ in range(5):
                grant = await locks.acquire([(one,), (two,)])
                assert (grant.acquired, grant.busy) == (frozenset(), {})
        assert cross_slot() - counted == 5 * 2
        # Once, and the circuit has not opened.
        assert [line["event"] for line in logs] == ["redis_lock_cross_slot"]
        grant = await locks.acquire([(one,)])
        assert grant.acquired == {one}
        await locks.release(grant)
        assert (await locks.acquire([(one,)])).acquired == {one}
