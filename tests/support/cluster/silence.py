"""What is at the address of a pod that is gone: nothing that answers.

On the loopback interface a connection to it is refused at once; in a real network the packets to
it mostly vanish, and whoever connects waits for as long as it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from tests.support.cluster.cluster import Cluster
from tests.support.cluster.pods import POLL_S, Pod


@contextlib.asynccontextmanager
async def of_the_gone(cluster: Cluster) -> AsyncIterator[None]:
    """In the block, who connects to a pod that is gone for good hears nothing.

    The connection is made, for that is done by the kernel, and nobody ever reads from it: gRPC
    waits for the other side's first frame in vain.
    """
    with contextlib.ExitStack() as graves:
        digging = asyncio.create_task(_dig(cluster, graves))
        try:
            yield
        finally:
            digging.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await digging


async def _dig(cluster: Cluster, graves: contextlib.ExitStack) -> None:
    known: set[Pod] = set()
    while True:
        here = {pod for each in cluster.deployments.values() for pod in each.all_pods()}
        for pod in known - here:
            for port in pod.workload.container.ports.values():
                graves.enter_context(socket.create_server((pod.address, port)))
        known = here
        await asyncio.sleep(POLL_S)
