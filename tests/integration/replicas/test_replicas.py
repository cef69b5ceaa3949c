"""The rendered overlay `multi-replica-test` starts, serves orders, and outlives changes and kills.

With two replicas of each service; four, and longer, in tests/replicas. The scenarios
(``tests.support.traffic``) assert, and return the figures that are printed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
import pytest_asyncio
from dnslib import RCODE, DNSRecord

from common.rpc.status import from_rpc_error
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally_client.rpc.channels import open_channel
from tests.support.balances import charge
from tests.support.cluster import OVERLAY, Changes, Cluster, load
from tests.support.cluster.network import DNS_PORT
from tests.support.cluster.probes import failure
from tests.support.time_limits import LONG_S
from tests.support.traffic import kills, scenarios
from tests.support.traffic.client import PLAIN, opened, replica_of
from tests.support.traffic.shoppers import Shoppers

CONNECTION_AGE_S = 5
WITHOUT_AGE = "coupon"
"""The service that never closes a connection for its age."""
SHOPPERS = 3
STOPPED_S = 1.0
CHANGES = Changes(
    replicas=dict.fromkeys(scenarios.SERVICES, 2),
    settings={"TALLY_MAX_CONNECTION_AGE_S": str(CONNECTION_AGE_S)},
    environment={WITHOUT_AGE: {"TALLY_MAX_CONNECTION_AGE_S": "3600"}},
    arguments={"gateway": ("--latency-ms", "5-20", "--slow-ms", "300")},
    # Less than in the overlay, but more than a replica takes to drain. Otherwise all old replicas
    # may be draining before the first closes its connections, which is when clients look for new
    # ones: those whose connections have no maximum age would find none.
    min_ready_s=4,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """The overlay applied all at once: servers find databases without a schema at first."""
    directory = tmp_path_factory.mktemp("pods")
    async with Cluster.start(load(OVERLAY), directory, CHANGES, migrations_first=False) as running:
        yield running


async def test_an_overlay_applied_all_at_once_becomes_ready(cluster: Cluster) -> None:
    pods = [pod for service in scenarios.SERVICES for pod in cluster.pods(service)]
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


async def test_an_order_is_paid_by_coupon_balance_and_gateway(cluster: Cluster) -> None:
    async with opened(cluster) as client:
        shoppers = await Shoppers.create(client)
        await shoppers.shop("manifest-shopper")
        await shoppers.check_books()
        assert not client.record.failed
    await scenarios.audited(cluster)


async def test_every_probe_passes_and_metrics_are_served(cluster: Cluster) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for service in scenarios.SERVICES:
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


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_calls_are_spread_evenly(cluster: Cluster, service: str) -> None:
    print(await scenarios.spread(cluster, service, calls=200))


async def test_control_without_round_robin_one_replica_gets_every_call(cluster: Cluster) -> None:
    async with opened(cluster, {"loadBalancingConfig": [{"pick_first": {}}]}) as client:
        assert len(await scenarios.count_by_replica(client, "balance", calls=50)) == 1


async def test_one_request_sent_to_every_replica_has_one_effect(cluster: Cluster) -> None:
    print(await scenarios.one_request_everywhere(cluster))


async def test_of_five_confirmations_of_one_key_one_pays(cluster: Cluster) -> None:
    print(await scenarios.duplicates(cluster, rounds=50))


async def test_a_new_replica_gets_traffic_by_the_connection_age_alone(cluster: Cluster) -> None:
    """Its control at the same time: one whose connections have no maximum age gets none."""
    limit_s = scenarios.found_limit_s(cluster, "balance")
    figures, control = await asyncio.gather(
        scenarios.found(cluster, "balance"),
        scenarios.first_call_at_a_new_replica(cluster, WITHOUT_AGE, limit_s),
    )
    print(figures)
    assert control is None


async def test_no_call_fails_while_every_service_is_restarted(cluster: Cluster) -> None:
    print(await scenarios.rolled(cluster, scenarios.SERVICES, SHOPPERS))


async def test_a_killed_replica_costs_no_request_and_doubles_none(cluster: Cluster) -> None:
    figures, record = await kills.killed(cluster, "balance", SHOPPERS, stopped_s=STOPPED_S)
    print(figures)
    assert not record.failed


async def test_control_without_retries_a_kill_is_seen_and_still_doubles_nothing(
    cluster: Cluster,
) -> None:
    figures, record = await kills.killed(
        cluster, "balance", SHOPPERS, stopped_s=STOPPED_S, config=PLAIN
    )
    print(figures)
    assert record.failed
