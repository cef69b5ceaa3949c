"""The subscriptions of a cluster's primaries: each ends when its node is no primary any more."""

from __future__ import annotations

import asyncio
from typing import Any

from common.locking.grant_channel import ClusterChannels, ended
from tests.support.waits import until_true


class Cluster:
    """Its primaries are what a test says."""

    def __init__(self, *ports: int) -> None:
        self.ports = ports

    async def initialize(self) -> None:
        pass

    def get_primaries(self) -> list[Any]:
        return [Node(port) for port in self.ports]


class Node:
    host = "127.0.0.1"

    def __init__(self, port: int) -> None:
        self.port = port


class Deaf:
    """A channel that misses its first cancellation, as the client library can."""

    running = 0
    ready = True

    async def run(self) -> None:
        Deaf.running += 1
        try:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.Event().wait()
        finally:
            Deaf.running -= 1


async def test_the_subscription_of_a_former_primary_ends() -> None:
    cluster: Any = Cluster(1, 2)
    opened: Any = Deaf
    channels = ClusterChannels(cluster, opened, lambda _opened: opened())
    task = asyncio.create_task(channels.run())
    await until_true(lambda: Deaf.running == 2)
    cluster.ports = (2,)
    await until_true(lambda: Deaf.running == 1)
    await ended(task)
    assert Deaf.running == 0
