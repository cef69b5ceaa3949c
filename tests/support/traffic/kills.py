"""A replica is killed with kill -9: what is done, and what is checked afterwards."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import httpx

from tests.support.cluster import Cluster, Pod
from tests.support.payments import check_charged_once
from tests.support.traffic.client import PUBLISHED, Record, opened
from tests.support.traffic.scenarios import SEEN_LIMIT_S, audited, gateway_of, kind_of
from tests.support.traffic.shoppers import Shoppers

FAILURE_S_MAX: Final = 5.0
"""No request may be delayed for longer."""
IN_FLIGHT: Final = "tally_grpc_calls_in_flight"


async def killed(
    cluster: Cluster,
    service: str,
    count: int,
    *,
    stopped_s: float = 0.0,
    for_good: bool = False,
    config: Mapping[str, Any] = PUBLISHED,
) -> tuple[str, Record]:
    """Kill one pod under load: no request fails for long, nothing is lost or doubled.

    ``stopped_s``: how long the pod is stopped before, so that calls are certainly in flight when it
    dies. ``for_good``: it is not started again, as when its node is lost; another replaces it.
    """
    async with opened(cluster, config) as client:
        shoppers = await Shoppers.create(client)
        async with shoppers.running(count):
            await shoppers.finished(2 * count)
            before, client.record = client.record, Record()
            assert not before.failed
            pod = cluster.pods(service)[0]
            if stopped_s:
                cluster.signal(pod, signal.SIGSTOP)
                await asyncio.sleep(stopped_s)
            await (cluster.lose(pod) if for_good else cluster.kill(pod))
            await cluster.deployments[service].settled(SEEN_LIMIT_S)
            await shoppers.finished(count)
        assert (pod in cluster.pods(service)) != for_good
        record = replace(client.record)
        await shoppers.check_books()
    how = f", stopped for {stopped_s:g} s before" if stopped_s else ""
    how += ", for good" if for_good else ""
    figures = f"kill -9 of one {service}{how}, {kind_of(config)}: {record.summary()}"
    figures += f" (before: {before.summary()})"
    check_delays(before, record, figures)
    if config is PUBLISHED:
        check_codes(record, service)
    await audited(cluster)
    return figures, record


def check_delays(before: Record, after: Record, figures: str) -> None:
    """No request was delayed for more than 5 s.

    Every request is timed from its first send to its success, since gRPC's own retries only make a
    call longer. What a call takes anyway on this machine is what the longest one took before, in
    the same run.
    """
    allowed = {name: FAILURE_S_MAX + took_s for name, took_s in before.longest_s.items()}
    late = {name: s for name, s in after.longest_s.items() if s > allowed[name]}
    assert not late, (late, figures)


def check_codes(record: Record, service: str) -> None:
    """A client with the published config saw no call fail when a replica of the service died.

    Except a repeated PayOrder, which waits for the first one for 5 s. The payments of a dead order
    replica are usually taken over and paid by then; otherwise the client has to repeat (ABORTED).
    """
    may_fail = {"ABORTED"} if service == "order" else set[str]()
    assert set(record.codes) <= may_fail, record.failed[:20]


async def killed_while_paying(cluster: Cluster, count: int) -> str:
    """Kill a payment pod whose confirmations are at the gateway: each is charged once.

    The gateway's replies are kept back until the pod is dead. Their outcome is unknown until its
    lease is over and another pod reads it from the gateway.
    """
    gateway, killed = gateway_of(cluster), asyncio.Event()
    async with opened(cluster) as client:
        shoppers = await Shoppers.create(client)
        users = [f"paying{number}" for number in range(count)]
        keys = {shoppers.key_of(user_id) for user_id in users}
        with cluster.services.replies_wait("gateway", killed.wait):
            async with asyncio.TaskGroup() as group:
                for user_id in users:
                    group.create_task(shoppers.shop(user_id))
                async with asyncio.timeout(SEEN_LIMIT_S):
                    charged: set[str] = set()
                    while not keys <= charged:
                        charged = set(await asyncio.to_thread(gateway.charges))
                # All are charged and none has a reply: the calls in flight wait for the gateway. A
                # call waits for some seconds, so on a slow machine the first may have ended.
                serving = {pod: await _calls_in_flight(pod) for pod in cluster.pods("payment")}
                victim = max(serving, key=lambda pod: serving[pod])
                assert serving[victim] > 0, serving
                await cluster.kill(victim)
                killed.set()
        check_codes(client.record, "payment")
        check_charged_once(await asyncio.to_thread(gateway.charges), keys)
        figures = client.record.summary()
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
