"""What is tried by killing a replica with kill -9, and what must then be so."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import httpx

from tests.support.cluster import Cluster, Pod
from tests.support.traffic.client import PUBLISHED, Record, opened
from tests.support.traffic.scenarios import (
    SEEN_LIMIT_S,
    audited,
    check_charged_once,
    gateway_of,
    kind_of,
)
from tests.support.traffic.shoppers import Shoppers

FAILURE_S_MAX: Final = 5.0
"""No request may be kept from its success for longer."""
IN_FLIGHT: Final = "tally_grpc_calls_in_flight"


async def killed(
    cluster: Cluster,
    service: str,
    crowd: int,
    *,
    held_s: float = 0.0,
    for_good: bool = False,
    config: Mapping[str, Any] = PUBLISHED,
) -> tuple[str, Record]:
    """kill -9 of one pod under load: no request fails for long, nothing is lost or doubled.

    ``held_s``: so long the pod is held still before, so that calls are certainly on their way to it
    and unanswered when it dies. ``for_good``: it does not come back, as when its node is lost;
    another takes its place.
    """
    async with opened(cluster, config) as client:
        shoppers = await Shoppers.invited(client)
        async with shoppers.at_work(crowd):
            await shoppers.came(2 * crowd)
            before, client.record = client.record, Record()
            assert not before.failed
            pod = cluster.pods(service)[0]
            if held_s:
                cluster.signal(pod, signal.SIGSTOP)
                await asyncio.sleep(held_s)
            await (cluster.lose(pod) if for_good else cluster.kill(pod))
            await cluster.deployments[service].settled(SEEN_LIMIT_S)
            await shoppers.came(crowd)
        assert (pod in cluster.pods(service)) != for_good
        record = replace(client.record)
        await shoppers.check_books()
    how = f", held for {held_s:g} s before" if held_s else ""
    how += ", for good" if for_good else ""
    told = f"kill -9 of one {service}{how}, {kind_of(config)}: {record.told()}"
    told += f" (before: {before.told()})"
    check_delays(before, record, told)
    if config is PUBLISHED:
        check_codes(record, service)
    await audited(cluster)
    return told, record


def check_delays(before: Record, after: Record, told: str) -> None:
    """No request was kept from its success for more than 5 s.

    Every request is timed from its first send to its success, for gRPC's own repetitions show as
    nothing but a call that takes longer. What such a call takes anyway, on this machine and with
    what else it does, is what the longest one took in the same run before.
    """
    allowed = {name: FAILURE_S_MAX + took_s for name, took_s in before.longest_s.items()}
    late = {name: s for name, s in after.longest_s.items() if s > allowed[name]}
    assert not late, (late, told)


def check_codes(record: Record, service: str) -> None:
    """A client with the published config saw no call fail when a replica of the service died.

    But a repeated PayOrder, which waits for the first one for 5 s: what a dead order replica was
    paying is usually taken over and paid by then, and otherwise it is told to come again (ABORTED).
    """
    may_fail = {"ABORTED"} if service == "order" else set[str]()
    assert set(record.codes) <= may_fail, record.failed[:20]


async def killed_while_paying(cluster: Cluster, crowd: int) -> str:
    """kill -9 of a payment pod whose confirmations are at the gateway: each is charged once.

    The gateway's replies are kept back until the pod is dead. Nobody knows their outcome until its
    lease is over and another finds it out.
    """
    gateway, told = gateway_of(cluster), asyncio.Event()
    async with opened(cluster) as client:
        shoppers = await Shoppers.invited(client)
        users = [f"patient{number}" for number in range(crowd)]
        keys = {shoppers.key_of(user_id) for user_id in users}
        with cluster.services.replies_wait("gateway", told.wait):
            async with asyncio.TaskGroup() as group:
                for user_id in users:
                    group.create_task(shoppers.shop(user_id))
                async with asyncio.timeout(SEEN_LIMIT_S):
                    charged: set[str] = set()
                    while not keys <= charged:
                        charged = set(await asyncio.to_thread(gateway.charges))
                # All are charged, and none is answered: what a pod serves now waits for the
                # gateway. It waits for some seconds, so the first of a slow crowd may have gone.
                serving = {pod: await _calls_in_flight(pod) for pod in cluster.pods("payment")}
                victim = max(serving, key=lambda pod: serving[pod])
                assert serving[victim] > 0, serving
                await cluster.kill(victim)
                told.set()
        check_codes(client.record, "payment")
        check_charged_once(await asyncio.to_thread(gateway.charges), keys)
        figures = client.record.told()
        await shoppers.check_books()
    await cluster.settled()
    await audited(cluster)
    return f"kill -9 of one payment with {serving[victim]} confirmations unanswered: {figures}"


async def _calls_in_flight(pod: Pod) -> int:
    """The calls that a replica is serving, by its metrics."""
    async with httpx.AsyncClient(trust_env=False) as client:
        ports = pod.workload.container.ports
        page = await client.get(f"http://{pod.address}:{ports['metrics']}/metrics")
    (line,) = (each for each in page.text.splitlines() if each.startswith(f"{IN_FLIGHT} "))
    return int(float(line.split()[1]))
