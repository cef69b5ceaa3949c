"""What is tried on a cluster of several replicas, for suites of any size.

Each returns its figures, after it has checked what must hold.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import grpc

from common.clients import open_channel
from deploy.local.gateway.simulator import GatewaySimulator
from payment_service.settings import PaymentSettings
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tests.support.balances import charge
from tests.support.cluster import Cluster, Pod
from tests.support.payments import confirm
from tests.support.refusals import outcome
from tests.support.traffic.client import PUBLISHED, Client, Record, opened, replica_of
from tests.support.traffic.shoppers import Shoppers, in_groups

SERVICES: Final = ("balance", "coupon", "order", "payment")
SHARE_OFF_MAX: Final = 0.25
"""A replica's share of the calls may differ from an even one by this part of it."""
RESOLUTION_S: Final = 5.0
"""A channel asks DNS no more often than this (common.clients)."""
AGE_JITTER: Final = 1.1
"""gRPC varies the age at which it closes a connection by a tenth."""
FOUND_MARGIN_S: Final = 10.0
FAILURE_S_MAX: Final = 5.0
DUPLICATES: Final = 5
ROUNDS_AT_ONCE: Final = 20
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
    """Call until all of these have answered, and nothing else has."""
    method, request = reads(client)[service]
    client.record.replicas.clear()
    async with asyncio.timeout(SEEN_LIMIT_S):
        # A replica has its turns from the moment on that its connection is made.
        while set(client.record.replicas) != pods:
            await client.insist(method, request)


async def answers(client: Client, service: str, calls: int) -> Counter[str]:
    """By replica, its answers to that many calls, one after the other."""
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
        answered = await answers(client, service, calls)
    shares = {name: answered[name] / calls for name in sorted(pods)}
    even = 1 / len(pods)
    off = max(abs(share / even - 1) for share in shares.values())
    assert off <= SHARE_OFF_MAX, shares
    told = ", ".join(f"{share:.1%}" for share in shares.values())
    return f"{service}: {calls} calls over {len(pods)} replicas: {told}"


async def found(cluster: Cluster, service: str, *, connection_age_s: float) -> str:
    """A new replica gets calls of a client that never reopens its channel."""
    replicas = len(cluster.pods(service))
    limit_s = connection_age_s * AGE_JITTER + RESOLUTION_S + FOUND_MARGIN_S
    async with opened(cluster) as client:
        method, request = reads(client)[service]
        await client.call(method, request)
        before = {pod.name for pod in cluster.pods(service)}
        async with _calling(client, method, request):
            await cluster.scale(service, replicas + 1)
            (new,) = {pod.name for pod in cluster.pods(service)} - before
            since = time.monotonic()
            while new not in client.record.replicas:
                assert time.monotonic() - since < limit_s, client.record.replicas
                await asyncio.sleep(0.02)
            took_s = time.monotonic() - since
    await cluster.scale(service, replicas)
    return f"{service}: first call at a new replica {took_s:.1f} s after it was ready"


async def rolled(
    cluster: Cluster,
    services: Sequence[str],
    crowd: int,
    *,
    config: Mapping[str, Any] = PUBLISHED,
    failed_max: int = 0,
) -> str:
    """Every pod of these services is replaced under load, all services at the same time."""
    async with opened(cluster, config) as client:
        shoppers = await Shoppers.invited(client)
        before = {pod.name for service in services for pod in cluster.pods(service)}
        async with shoppers.at_work(crowd):
            await asyncio.gather(*map(cluster.rollout, services))
        after = {pod.name for service in services for pod in cluster.pods(service)}
        assert not before & after
        assert len(client.record.failed) <= failed_max, client.record.failed[:20]
        told = client.record.told()
        await shoppers.check_books()
    await audited(cluster)
    return f"rolling restart of {', '.join(services)}, {kind_of(config)}: {told}"


async def killed(
    cluster: Cluster,
    service: str,
    crowd: int,
    *,
    held_s: float = 0.0,
    config: Mapping[str, Any] = PUBLISHED,
) -> tuple[str, Record]:
    """kill -9 of one pod under load: no request fails for long, nothing is lost or doubled.

    ``held_s``: so long the pod is held still before, so that calls are certainly on their way to it
    and unanswered when it dies.
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
            await cluster.kill(pod)
            await cluster.deployments[service].settled(SEEN_LIMIT_S)
            await shoppers.came(crowd)
        record = replace(client.record)
        await shoppers.check_books()
    how = f", held for {held_s:g} s before" if held_s else ""
    told = f"kill -9 of one {service}{how}, {kind_of(config)}: {record.told()}"
    told += f" (before: {before.told()})"
    check_delays(before, record, told, lease_s=_lease_s(pod) if service == "payment" else 0.0)
    if config is PUBLISHED:
        check_codes(record, service)
    await audited(cluster)
    return told, record


def check_delays(before: Record, after: Record, told: str, *, lease_s: float = 0.0) -> None:
    """No request was kept from its success for more than 5 s.

    Every request is timed from its first send to its success, for gRPC's own repetitions show as
    nothing but a call that takes longer. What such a call takes anyway, on this machine and with
    what else it does, is what the longest one took in the same run before.

    ``lease_s``: PayOrder may take this much longer. Where a dead payment replica had a confirmation
    at the gateway, nobody may ask the gateway about it before that replica's lease is over.
    """
    allowed = {name: FAILURE_S_MAX + took_s for name, took_s in before.longest_s.items()}
    allowed["PayOrder"] += lease_s
    late = {name: s for name, s in after.longest_s.items() if s > allowed[name]}
    assert not late, (late, told)


def check_codes(record: Record, service: str) -> None:
    """A client with the published config saw no call fail when a replica of the service died.

    But a repeated PayOrder, which waits for the first one for 5 s: what a dead order replica was
    paying is usually taken over and paid by then, and otherwise it is told to come again (ABORTED).
    """
    may_fail = {"ABORTED"} if service == "order" else set[str]()
    assert set(record.codes) <= may_fail, record.failed[:20]


def _lease_s(payment: Pod) -> float:
    """How long a payment replica keeps others from what it has at the gateway."""
    usual = PaymentSettings.model_fields["lease_s"].default
    return float(payment.process.environment.get("TALLY_PAYMENT_LEASE_S", usual))


async def killed_while_paying(cluster: Cluster, crowd: int) -> str:
    """kill -9 of a payment pod whose confirmations are at the gateway: each is charged once.

    Nobody knows their outcome until the dead pod's lease is over and another finds it out; that
    may take most of the time that PayOrder has.
    """
    gateway = _gateway(cluster)
    async with opened(cluster) as client:
        shoppers = await Shoppers.invited(client)
        shoppers.key_prefix = "slow_"
        users = [f"patient{number}" for number in range(crowd)]
        keys = {shoppers.key_of(user_id) for user_id in users}
        async with asyncio.TaskGroup() as group:
            for user_id in users:
                group.create_task(shoppers.shop(user_id))
            async with asyncio.timeout(SEEN_LIMIT_S):
                charged: set[str] = set()
                while not keys <= charged:
                    charged = set(await asyncio.to_thread(gateway.charges))
            await cluster.kill(cluster.pods("payment")[0])
        charges = await asyncio.to_thread(gateway.charges)
        assert {charges[key]["payment"]["status"] for key in keys} == {"DONE"}
        told = client.record.told()
        await shoppers.check_books()
    await cluster.settled()
    await audited(cluster)
    return f"kill -9 of one payment with confirmations at the gateway: {told}"


def kind_of(config: Mapping[str, Any]) -> str:
    """What a client with this service config is called in the figures."""
    return "published config" if config is PUBLISHED else "no retries"


async def one_request_everywhere(cluster: Cluster) -> str:
    """One request_id sent to every replica at once has one effect and one answer."""
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
    """Of five confirmations of one payment_key, behind round robin, one pays, once."""
    told: Counter[str] = Counter()
    keys = [f"duplicate-{time.monotonic_ns()}-{number}" for number in range(rounds)]
    # Repeated by nothing: a retry within gRPC would hide which answer a rival got.
    async with opened(cluster, {"loadBalancingConfig": [{"round_robin": {}}]}) as client:

        async def play(key: str) -> None:
            requests = [confirm(key, f"{key}-{rival}") for rival in range(DUPLICATES)]
            answers = await asyncio.gather(
                *(outcome(client.call(client.payment.ConfirmPayment, each)) for each in requests)
            )
            refused = [answer for answer in answers if isinstance(answer, str)]
            assert len(refused) == DUPLICATES - 1, refused
            assert set(refused) <= TURNED_AWAY, refused
            told.update(refused)

        await in_groups(play, keys, ROUNDS_AT_ONCE)
        replicas = len(client.record.replicas)
    assert replicas == len(cluster.pods("payment"))
    charges = await asyncio.to_thread(_gateway(cluster).charges)
    assert {charges[key]["confirmCalls"] for key in keys} == {1}
    assert {charges[key]["payment"]["status"] for key in keys} == {"DONE"}
    await audited(cluster)
    return f"{rounds} rounds of {DUPLICATES} over {replicas} replicas: 1 paid each, {dict(told)}"


async def audited(cluster: Cluster) -> None:
    """The books balance."""
    report = await cluster.audit()
    differences = [line.differences for line in report.lines if not line.holds]
    assert report.holds, differences


def _gateway(cluster: Cluster) -> GatewaySimulator:
    """A client of the cluster's gateway."""
    simulator = GatewaySimulator(cluster.path_of("gateway", "--data-file"))
    (pod,) = cluster.pods("gateway")
    command = pod.process.command
    port = command[command.index("--port") + 1]
    simulator.url = f"http://{pod.address}:{port}"
    simulator.secret_key = cluster.path_of("gateway", "--secret-key-file").read_text().strip()
    return simulator


class _calling:  # noqa: N801 - reads as a statement
    """One call after the other during the block."""

    def __init__(self, client: Client, method: Any, request: Any) -> None:
        self._made = (client, method, request)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._call())

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        (ended,) = await asyncio.gather(self._task, return_exceptions=True)
        if isinstance(ended, grpc.aio.AioRpcError):
            raise ended

    async def _call(self) -> None:
        client, method, request = self._made
        while True:
            await client.call(method, request)
            await asyncio.sleep(0.02)
