"""Makes the addresses of lost pods silent, as in a real network.

On the loopback interface a connection to such an address is refused at once. In a real network the
packets are mostly dropped, and the client waits until its own timeout.
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
    """In the block, a connection to a pod that has ended permanently gets no answer.

    The kernel accepts the connection and no process reads from it, so that gRPC waits in vain for
    the first frame of the server.
    """
    with contextlib.ExitStack() as sockets:
        watching = asyncio.create_task(_listen(cluster, sockets))
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


async def _listen(cluster: Cluster, sockets: contextlib.ExitStack) -> None:
    known: set[Pod] = set()
    while True:
        present = {pod for each in cluster.deployments.values() for pod in each.all_pods()}
        for pod in known - present:
            for port in pod.workload.container.ports.values():
                sockets.enter_context(socket.create_server((pod.address, port)))
        known = present
        await asyncio.sleep(POLL_S)
