"""Calls are spread, replicas are added, replaced and killed: no correct client sees an error.

The scenarios (``tests.support.traffic``) assert, and return the figures that are printed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.cluster import Cluster, silence
from tests.support.traffic import kills, scenarios
from tests.support.traffic.client import PLAIN, opened

SHOPPERS = 8
STOPPED_S = 1.0
DNS_KEPT_S = 30.0
"""How long the DNS of many clusters caches an answer (kubeadm's Corefile: ``cache 30``)."""

Report = Callable[[str], None]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


async def test_every_deployment_has_four_pods(cluster: Cluster) -> None:
    assert [len(cluster.pods(service)) for service in scenarios.SERVICES] == [4] * 4


async def test_a_payment_at_the_gateway_survives_its_replica(
    cluster: Cluster, report: Report
) -> None:
    report(await kills.killed_while_paying(cluster, 2 * SHOPPERS))


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_calls_are_spread_evenly(cluster: Cluster, report: Report, service: str) -> None:
    report(await scenarios.spread(cluster, service, calls=1_000))


async def test_one_request_sent_to_every_replica_has_one_effect(
    cluster: Cluster, report: Report
) -> None:
    report(await scenarios.one_request_everywhere(cluster))


async def test_of_five_confirmations_of_one_key_one_pays(cluster: Cluster, report: Report) -> None:
    report(await scenarios.duplicates(cluster, rounds=2_000))


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_a_new_replica_gets_traffic(cluster: Cluster, report: Report, service: str) -> None:
    report(await scenarios.found(cluster, service))


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_no_call_fails_while_a_service_is_restarted(
    cluster: Cluster, report: Report, service: str
) -> None:
    report(await scenarios.rolled(cluster, [service], SHOPPERS))


async def test_draining_is_enough_for_a_client_without_retries(
    cluster: Cluster, report: Report
) -> None:
    report(await scenarios.rolled(cluster, scenarios.SERVICES, SHOPPERS, config=PLAIN))


async def test_no_call_fails_in_a_full_restart_with_dns_answers_of_30_s_ago(
    cluster: Cluster, report: Report
) -> None:
    with cluster.names.kept(DNS_KEPT_S):
        async with silence.of_the_gone(cluster):
            figures = await scenarios.rolled(cluster, scenarios.SERVICES, SHOPPERS)
    report(f"{figures}, DNS answers kept for {DNS_KEPT_S:g} s")


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_a_killed_replica_costs_no_request_and_doubles_none(
    cluster: Cluster, report: Report, service: str
) -> None:
    figures, _ = await kills.killed(cluster, service, SHOPPERS)
    report(figures)


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_a_killed_replica_that_held_calls_delays_them_for_5_s_at_most(
    cluster: Cluster, report: Report, service: str
) -> None:
    figures, _ = await kills.killed(cluster, service, SHOPPERS, stopped_s=STOPPED_S)
    report(figures)


@pytest.mark.parametrize("service", scenarios.SERVICES)
async def test_a_replica_lost_for_good_costs_no_request_and_doubles_none(
    cluster: Cluster, report: Report, service: str
) -> None:
    with cluster.names.kept(DNS_KEPT_S):
        async with silence.of_the_gone(cluster):
            figures, _ = await kills.killed(
                cluster, service, SHOPPERS, stopped_s=STOPPED_S, for_good=True
            )
    report(figures)
    async with opened(cluster) as client:
        await scenarios.all_seen(client, service, {pod.name for pod in cluster.pods(service)})


async def test_a_client_without_retries_gets_errors_and_may_repeat(
    cluster: Cluster, report: Report
) -> None:
    figures, record = await kills.killed(
        cluster, "balance", SHOPPERS, stopped_s=STOPPED_S, config=PLAIN
    )
    report(figures)
    assert record.failed
