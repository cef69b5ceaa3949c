"""Two replicas of each service, from the rendered overlay; four, and longer, in tests/replicas.

The scenarios (``tests.support.traffic``) assert, and return the figures that are printed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.cluster import OVERLAY, Changes, Cluster, load
from tests.support.traffic import kills, scenarios
from tests.support.traffic.client import PLAIN, opened

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
    async with Cluster.start(load(OVERLAY), tmp_path_factory.mktemp("pods"), CHANGES) as running:
        yield running


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
