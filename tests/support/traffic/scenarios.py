"""Scenarios on a cluster of several replicas, for suites of any size.

Each checks what must hold and returns its figures.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from deploy.audit.audit_pass import Note
from deploy.local.gateway.simulator import GatewaySimulator
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally_client.rpc.channels import open_channel
from tests.support.balances import charge
from tests.support.cluster import Cluster
from tests.support.crowd import in_groups
from tests.support.payments import check_charged_once, confirm
from tests.support.refusals import outcome
from tests.support.traffic.client import AGAIN_S, PUBLISHED, Client, opened, replica_of
from tests.support.traffic.shoppers import Shoppers

SERVICES: Final = ("balance", "coupon", "order", "payment")
SHARE_OFF_MAX: Final = 0.25
"""A replica's share of the calls may differ from an even one by this part of it."""
RESOLUTION_S: Final = 5.0
"""A channel asks DNS no more often than this (common.rpc.client)."""
AGE_JITTER: Final = 1.1
"""gRPC varies the age at which it closes a connection by a tenth."""
DUPLICATES: Final = 5
ROUNDS_AT_ONCE: Final = 20
MET_SHARE_MIN: Final = 0.8
"""The share of rounds in which a rival has to arrive while another is being paid."""
UNKNOWN_SHARE_MAX: Final = 0.01
TURNED_AWAY: Final = frozenset({"PAYMENT_IN_PROGRESS", "PAYMENT_KEY_USED"})
SEEN_LIMIT_S: Final = 60.0


def reads(client: Client) -> Mapping[str, tuple[Any, Any]]:
    """A cheap call of each service."""
    return {
        "balance": (client.balance.ChargeBalance, charge("reader", 1, "read")),
        "coupon": (client.coupon.ListCampaigns, coupon_pb2.ListCampaignsRequest()),
        "order": (client.products.ListProducts, order_pb2.ListProductsRequest()),
        "payment": (client.payment.ListPayments, payment_pb2.ListPaymentsRequest(user_id="ann")),
    }


async def all_seen(client: Client, service: str, pods: set[str]) -> None:
    """Call until the pods that replied are exactly these."""
    method, request = reads(client)[service]
    client.record.replicas.clear()
    async with asyncio.timeout(SEEN_LIMIT_S):
        # A replica gets calls as soon as its connection is open.
        while set(client.record.replicas) != pods:
            await client.insist(method, request)


async def count_by_replica(client: Client, service: str, calls: int) -> Counter[str]:
    """How many of the calls, made one after the other, each replica replied to."""
    method, request = reads(client)[service]
    client.record.replicas.clear()
    for _ in range(calls):
        await client.call(method, request)
    return client.record.replicas.copy()


async def spread(cluster: Cluster, service: str, calls: int) -> str:
    """Calls are spread evenly over the ready pods, each named as its pod is."""
    pods = {pod.name for pod in cluster.pods(service)}
    async with opened(cluster) as client:
        await all_seen(client, service, pods)
        answered = await count_by_replica(client, service, calls)
    shares = {name: answered[name] / calls for name in sorted(pods)}
    even = 1 / len(pods)
    off = max(abs(share / even - 1) for share in shares.values())
    assert off <= SHARE_OFF_MAX, shares
    listed = ", ".join(f"{share:.1%}" for share in shares.values())
    return f"{service}: {calls} calls over {len(pods)} replicas: {listed}"


async def found(cluster: Cluster, service: str) -> str:
    """A new replica gets calls of a client that never reopens its channel, within the age."""
    took_s = await first_call_at_a_new_replica(cluster, service, found_limit_s(cluster, service))
    assert took_s is not None, f"{service}: none within {found_limit_s(cluster, service):g} s"
    return f"{service}: first call at a new replica {took_s:.1f} s after it was ready"


def found_limit_s(cluster: Cluster, service: str) -> float:
    """The age of the service's connections, and what a channel may be late with asking DNS."""
    environment = cluster.pods(service)[0].process.environment
    return float(environment["TALLY_MAX_CONNECTION_AGE_S"]) * AGE_JITTER + RESOLUTION_S


async def first_call_at_a_new_replica(
    cluster: Cluster, service: str, limit_s: float
) -> float | None:
    """Seconds from when it was ready to its first call; None if none came within the limit."""
    replicas = len(cluster.pods(service))
    async with opened(cluster) as client:
        method, request = reads(client)[service]
        await client.call(method, request)
        before = {pod.name for pod in cluster.pods(service)}
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(_call_on(client, method, request))
            await cluster.scale(service, replicas + 1)
            (new,) = {pod.name for pod in cluster.pods(service)} - before
            since = time.monotonic()
            while (  # noqa: ASYNC110 - counted by another task
                new not in client.record.replicas and time.monotonic() - since < limit_s
            ):
                await asyncio.sleep(0.02)
            took_s = time.monotonic() - since if new in client.record.replicas else None
            calling.cancel()
    # A client with new channels finds it at once.
    async with opened(cluster) as client:
        await all_seen(client, service, before | {new})
    await cluster.scale(service, replicas)
    return took_s


async def rolled(
    cluster: Cluster,
    services: Sequence[str],
    count: int,
    *,
    config: Mapping[str, Any] = PUBLISHED,
    failed_max: int = 0,
) -> str:
    """Every pod of these services is replaced under load, all services at the same time."""
    async with opened(cluster, config) as client:
        shoppers = await Shoppers.create(client)
        before = {pod.name for service in services for pod in cluster.pods(service)}
        async with shoppers.running(count):
            await asyncio.gather(*map(cluster.rollout, services))
        after = {pod.name for service in services for pod in cluster.pods(service)}
        assert not before & after
        assert len(client.record.failed) <= failed_max, client.record.failed[:20]
        figures = client.record.summary()
        await shoppers.check_books()
    await audited(cluster)
    return f"rolling restart of {', '.join(services)}, {kind_of(config)}: {figures}"


def kind_of(config: Mapping[str, Any]) -> str:
    """The name of a client with this service config in the figures."""
    return "published config" if config is PUBLISHED else "no retries"


async def one_request_everywhere(cluster: Cluster) -> str:
    """One request_id sent to every replica at once has one effect and one response."""
    addresses = [f"ipv4:{pod.address}:50051" for pod in cluster.pods("balance")]
    channels = [open_channel(address) for address in addresses]
    try:
        request = charge("everywhere", 700, "everywhere")
        calls = [
            BalanceServiceStub(channel).ChargeBalance(request, timeout=30, wait_for_ready=True)
            for channel in channels
        ]
        responses = await asyncio.gather(*calls)
        names = {replica_of(await call.trailing_metadata()) for call in calls}
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
    assert names == {pod.name for pod in cluster.pods("balance")}
    assert len({response.entry.SerializeToString() for response in responses}) == 1
    assert {response.balance.available.amount_minor for response in responses} == {700}
    assert Counter(each.replayed for each in responses)[False] == 1
    await audited(cluster)
    return f"one request_id at {len(names)} replicas: one entry"


async def duplicates(cluster: Cluster, rounds: int) -> str:
    """Of five confirmations of one payment_key, behind round robin, one pays, once.

    The gateway takes 100 to 500 ms for ``slow_`` keys.
    """
    refusals: Counter[str] = Counter()
    met = unknown = 0
    keys = [f"slow_duplicate-{time.monotonic_ns()}-{number}" for number in range(rounds)]
    # Without retries: one within gRPC would hide which response a rival got.
    async with opened(cluster, {"loadBalancingConfig": [{"round_robin": {}}]}) as client:

        async def confirmed(request: Any) -> Any:
            # If the gateway closes an idle connection just as a call is sent over it, the outcome
            # is unknown. A repetition under the same request_id returns it.
            nonlocal unknown
            while True:
                result = await outcome(client.call(client.payment.ConfirmPayment, request))
                if result != "PAYMENT_OUTCOME_UNKNOWN":
                    return result
                unknown += 1
                await asyncio.sleep(AGAIN_S)

        async def play(key: str) -> None:
            nonlocal met
            requests = [confirm(key, f"{key}-{rival}") for rival in range(DUPLICATES)]
            results = await asyncio.gather(*map(confirmed, requests))
            refused = [result for result in results if isinstance(result, str)]
            assert len(refused) == DUPLICATES - 1, refused
            assert set(refused) <= TURNED_AWAY, refused
            (paid,) = (result.payment for result in results if not isinstance(result, str))
            assert (paid.state, paid.payment_key) == (payment_pb2.Payment.STATE_CONFIRMED, key)
            met += "PAYMENT_IN_PROGRESS" in refused
            refusals.update(refused)

        await in_groups(play, keys, ROUNDS_AT_ONCE)
        replicas = len(client.record.replicas)
    assert replicas == len(cluster.pods("payment"))
    assert unknown <= math.ceil(UNKNOWN_SHARE_MAX * rounds), unknown
    # Confirmations one after the other would only find the key used.
    assert met >= MET_SHARE_MIN * rounds, (met, refusals)
    charges = await asyncio.to_thread(gateway_of(cluster).charges)
    check_charged_once(charges, keys)
    await audited(cluster)
    return (
        f"{rounds} rounds of {DUPLICATES} over {replicas} replicas: 1 paid each, {dict(refusals)},"
        f" rivals met in {met}, unknown at first {unknown}"
    )


async def audited(cluster: Cluster) -> None:
    """The audit of the cluster finds no difference, and no saga has left effects behind."""
    report = await cluster.audit()
    assert not report.noted(Note.FOREIGN), report.notes
    differences = [line.differences for line in report.lines if not line.holds]
    assert report.holds, differences


def gateway_of(cluster: Cluster) -> GatewaySimulator:
    """A client of the cluster's gateway."""
    simulator = GatewaySimulator(cluster.path_of("gateway", "--data-file"))
    (pod,) = cluster.pods("gateway")
    command = pod.process.command
    port = command[command.index("--port") + 1]
    simulator.url = f"http://{pod.address}:{port}"
    simulator.secret_key = cluster.path_of("gateway", "--secret-key-file").read_text().strip()
    return simulator


async def _call_on(client: Client, method: Any, request: Any) -> None:
    """One call after the other until it is cancelled."""
    while True:
        await client.call(method, request)
        await asyncio.sleep(0.02)
