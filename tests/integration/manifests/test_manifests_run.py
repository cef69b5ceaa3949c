"""The rendered overlay `multi-replica-test` starts and serves orders.

With four replicas of balance and one of each other service; `make test-replicas` runs all of them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio
from dnslib import RCODE, DNSRecord

from common.rpc.channels import open_channel
from common.rpc.status import from_rpc_error
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tests.support.balances import charge
from tests.support.cluster import OVERLAY, Changes, Cluster, load
from tests.support.cluster.network import DNS_PORT
from tests.support.cluster.probes import failure
from tests.support.time_limits import LONG_S
from tests.support.traffic import scenarios
from tests.support.traffic.client import opened, replica_of
from tests.support.traffic.shoppers import Shoppers

REPLICAS = {"balance": 4, "coupon": 1, "order": 1, "payment": 1}

ALL_AT_ONCE = Changes(replicas=dict.fromkeys(REPLICAS, 1))

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    directory = tmp_path_factory.mktemp("cluster")
    async with Cluster.start(load(OVERLAY), directory, Changes(replicas=REPLICAS)) as running:
        yield running


async def test_an_order_is_paid_by_coupon_balance_and_gateway(cluster: Cluster) -> None:
    async with opened(cluster) as client:
        shoppers = await Shoppers.create(client)
        await shoppers.shop("manifest-shopper")
        await shoppers.check_books()
        assert not client.record.failed
    await scenarios.audited(cluster)


async def test_an_overlay_applied_all_at_once_becomes_ready(tmp_path: Path) -> None:
    objects = load(OVERLAY)
    async with Cluster.start(objects, tmp_path, ALL_AT_ONCE, migrations_first=False) as cluster:
        pods = [pod for service in REPLICAS for pod in cluster.pods(service)]
        assert [pod.ends for pod in pods] == [[]] * len(pods)
        async with opened(cluster) as client:
            shoppers = await Shoppers.create(client)
            # The order service may have resolved its peers while none was ready, and resolves
            # them again after some seconds; a payment before then fails as unavailable.
            numbers = itertools.count()
            async with asyncio.timeout(LONG_S):
                while not shoppers.done:
                    try:
                        await shoppers.shop(f"early-shopper-{next(numbers)}")
                    except grpc.aio.AioRpcError as error:
                        assert from_rpc_error(error).reason == "GATEWAY_UNAVAILABLE"
                        await asyncio.sleep(1.0)
        await scenarios.audited(cluster)


async def test_replicas_have_the_names_of_their_pods(cluster: Cluster) -> None:
    for service, count in REPLICAS.items():
        pods = cluster.pods(service)
        assert len(pods) == count
        async with opened(cluster) as client:
            await scenarios.all_seen(client, service, {pod.name for pod in pods})


async def test_every_probe_passes_and_metrics_are_served(cluster: Cluster) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for service in REPLICAS:
            for pod in cluster.pods(service):
                container = pod.workload.container
                assert set(container.probes) == {"startup", "readiness", "liveness"}
                for probe in container.probes.values():
                    assert await failure(probe, pod.address) == ""
                page = await client.get(
                    f"http://{pod.address}:{container.ports['metrics']}/metrics"
                )
                assert page.status_code == 200
                assert "tally_ready 1.0" in page.text


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
async def test_names_resolve_as_in_a_cluster(cluster: Cluster, tcp: bool) -> None:
    async def lookup(name: str) -> DNSRecord:
        query = DNSRecord.question(name)
        packet = await asyncio.to_thread(query.send, cluster.network.first, DNS_PORT, tcp, 30)
        return DNSRecord.parse(packet)

    pods = {pod.address for pod in cluster.pods("balance")}
    for suffix in ("", ".tally", ".tally.svc", ".tally.svc.cluster.local"):
        headless = await lookup(f"balance-headless{suffix}")
        assert {str(record.rdata) for record in headless.rr} == pods
        (own,) = (await lookup(f"balance{suffix}")).rr
        assert str(own.rdata) not in pods
    for name in ("nobody", "balance.elsewhere"):
        assert (await lookup(name)).header.rcode == RCODE.NXDOMAIN


async def test_a_service_with_a_cluster_ip_reaches_the_pods(cluster: Cluster) -> None:
    channel = open_channel(cluster.target("balance"))
    try:
        call = BalanceServiceStub(channel).ChargeBalance(charge("proxied", 5, "c"), timeout=30)
        assert (await call).balance.available.amount_minor == 5
        pods = {pod.name for pod in cluster.pods("balance")}
        assert replica_of(await call.trailing_metadata()) in pods
    finally:
        await channel.close()


async def test_a_killed_container_is_started_again(cluster: Cluster) -> None:
    pod = cluster.pods("coupon")[0]
    await cluster.kill(pod)
    assert pod.ends == ["was ended by SIGKILL"]
    await cluster.settled()
    async with opened(cluster) as client:
        await scenarios.all_seen(client, "coupon", {pod.name})
