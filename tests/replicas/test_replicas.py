"""Calls spread, replicas come and go, one dies: no correct client sees a failed call."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.cluster import Cluster, silence
from tests.support.traffic import kills, scenarios
from tests.support.traffic.client import PLAIN, opened

CROWD = 8
HELD_S = 1.0
DNS_KEPT_S = 30.0
"""As long as the DNS of many clusters keeps an answer (kubeadm's Corefile: ``cache 30``)."""

Tell = Callable[[str], None]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


async def test_every_deployment_has_four_pods(cluster: Cluster) -> None:
    assert [len(cluster.pods(service)) for service in scenarios.SERVICES] == [4] * 4


async def test_a_payment_at_the_gateway_survives_the_replica_that_asked(
    cluster: Cluster, tell: Tell
) -> None:
    tell(await kills.killed_while_paying(cluster, 2 * CROWD))


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_calls_are_spread_evenly(cluster: Cluster, tell: Tell, service: str) -> None:
    tell(await scenarios.spread(cluster, service, calls=1_000))


async def test_one_request_sent_to_every_replica_has_one_effect(
    cluster: Cluster, tell: Tell
) -> None:
    tell(await scenarios.one_request_everywhere(cluster))


async def test_of_five_confirmations_of_one_key_one_pays(cluster: Cluster, tell: Tell) -> None:
    tell(await scenarios.duplicates(cluster, rounds=2_000))


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_a_new_replica_gets_traffic(cluster: Cluster, tell: Tell, service: str) -> None:
    tell(await scenarios.found(cluster, service))


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_no_call_fails_while_a_service_is_restarted(
    cluster: Cluster, tell: Tell, service: str
) -> None:
    tell(await scenarios.rolled(cluster, [service], CROWD))


async def test_draining_is_enough_for_a_client_that_repeats_nothing(
    cluster: Cluster, tell: Tell
) -> None:
    tell(await scenarios.rolled(cluster, scenarios.SERVICES, CROWD, config=PLAIN))


async def test_no_call_fails_while_all_is_restarted_and_dns_tells_what_was_30_s_ago(
    cluster: Cluster, tell: Tell
) -> None:
    with cluster.names.kept(DNS_KEPT_S):
        async with silence.of_the_gone(cluster):
            told = await scenarios.rolled(cluster, scenarios.SERVICES, CROWD)
    tell(f"{told}, DNS answers kept for {DNS_KEPT_S:g} s")


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_a_killed_replica_costs_no_request_and_doubles_none(
    cluster: Cluster, tell: Tell, service: str
) -> None:
    told, _ = await kills.killed(cluster, service, CROWD)
    tell(told)


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_a_killed_replica_that_held_calls_delays_them_for_5_s_at_most(
    cluster: Cluster, tell: Tell, service: str
) -> None:
    told, _ = await kills.killed(cluster, service, CROWD, held_s=HELD_S)
    tell(told)


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_a_replica_lost_for_good_costs_no_request_and_doubles_none(
    cluster: Cluster, tell: Tell, service: str
) -> None:
    with cluster.names.kept(DNS_KEPT_S):
        async with silence.of_the_gone(cluster):
            told, _ = await kills.killed(cluster, service, CROWD, held_s=HELD_S, for_good=True)
    tell(told)
    async with opened(cluster) as client:
        await scenarios.all_seen(client, service, {pod.name for pod in cluster.pods(service)})


async def test_a_client_that_repeats_nothing_is_told_and_may_repeat(
    cluster: Cluster, tell: Tell
) -> None:
    told, record = await kills.killed(cluster, "balance", CROWD, held_s=HELD_S, config=PLAIN)
    tell(told)
    assert record.failed
