"""Turns of a consumer that fail: its tickets keep their order, and other queues go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from asyncpg.exceptions import QueryCanceledError, UndefinedTableError
from structlog.testing import capture_logs

from common.metrics import REGISTRY
from coupon_service.model.ticket import QueuedCampaign, partition_of, queue_of
from coupon_service.settings import CouponSettings
from coupon_service.store import coupon as coupon_store
from coupon_service.store import ticket as store
from coupon_service.use_cases import queue_consumer
from coupon_service.wiring import build
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from tally.coupon.v1 import coupon_pb2 as pb
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tests.support.coupons import decided, open_campaign, queue
from tests.support.payments import until
from tests.support.replicas import channel, replicas

USERS = ("ann", "bob", "eve")
TRIES_OF_LANE = 3
"""Of one batch, when its connection is lost."""


@pytest.fixture(scope="module")
def redis_url(valkey_server: ValkeyServer) -> str:
    """With Redis in every run: the queues are in it."""
    return valkey_server.url


async def queued(coupon: Any, campaign_id: str) -> list[pb.Ticket]:
    """Tickets of all users, in their order. A request_id is used for one campaign only."""
    requests = [queue(campaign_id, user_id, campaign_id) for user_id in USERS]
    responses = [await coupon.QueueCoupon(request) for request in requests]
    return [response.ticket for response in responses]


async def all_issued(coupon: Any, tickets: list[pb.Ticket]) -> None:
    final = [await decided(coupon, ticket) for ticket in tickets]
    assert [ticket.coupon.issue_number for ticket in final] == list(range(1, len(final) + 1))


class Failing:
    """Stands before a call of the store, and raises ``error`` while ``fails`` says so."""

    def __init__(self, call: Any, error: type[BaseException], fails: Callable[..., bool]) -> None:
        self._call = call
        self._error = error
        self._fails = fails
        self.raised = 0

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._fails(self, *args):
            self.raised += 1
            raise self._error
        return await self._call(*args, **kwargs)


@pytest.mark.parametrize(
    ("error", "raised_max"),
    [
        (ConnectionResetError, 3 * queue_consumer.FAILURES_MAX + 1),
        (UndefinedTableError, queue_consumer.FAILURES_MAX + 1),
        # The batch of three, and then the first ticket alone.
        (asyncio.CancelledError, 2),
    ],
    ids=["database away", "table missing", "lane lost the batch"],
)
async def test_no_ticket_is_refused_for_a_fault_that_is_not_its_own(
    coupon: Any,
    opened: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    raised_max: int,
) -> None:
    """After several failures in a row the consumer steps down, and the next one has the fault."""
    failing = Failing(store.lock_campaigns, error, lambda self, *_: self.raised < raised_max)
    campaign_id = await open_campaign(coupon, queue_only=True)
    tickets = await queued(coupon, campaign_id)
    with capture_logs() as logged:
        monkeypatch.setattr(store, "lock_campaigns", failing)
        opened.set()
        await all_issued(coupon, tickets)
    assert failing.raised == raised_max
    elected = [line for line in logged if line["event"] == "queue_consumer_elected"]
    stepped_down = raised_max > queue_consumer.FAILURES_MAX
    assert bool(elected) == stepped_down


async def test_a_ticket_that_always_meets_a_defect_does_not_stop_its_queue(
    coupon: Any, opened: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue = QueuedCampaign.issue

    def broken(self: QueuedCampaign, ticket: Any, coupon_id: str) -> Any:
        assert ticket.request.user_id != "bob"
        return issue(self, ticket, coupon_id)

    monkeypatch.setattr(QueuedCampaign, "issue", broken)
    tickets = await queued(coupon, await open_campaign(coupon, queue_only=True))
    opened.set()
    ann, bob, eve = [await decided(coupon, ticket) for ticket in tickets]
    assert (ann.coupon.issue_number, eve.coupon.issue_number) == (1, 2)
    assert (bob.state, bob.failure_reason) == (pb.Ticket.STATE_REFUSED, "INTERNAL")
    monkeypatch.setattr(QueuedCampaign, "issue", issue)
    response = await coupon.QueueCoupon(queue(bob.campaign_id, "bob", bob.campaign_id))
    assert (await decided(coupon, response.ticket)).coupon.issue_number == 3


async def test_batches_that_are_too_slow_are_made_smaller_and_none_is_refused(
    coupon: Any, opened: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(
        coupon_store.find_issued, QueryCanceledError, lambda _, __, claims: len(claims) > 1
    )
    monkeypatch.setattr(coupon_store, "find_issued", failing)
    tickets = await queued(coupon, await open_campaign(coupon, queue_only=True))
    opened.set()
    await all_issued(coupon, tickets)
    assert failing.raised > 0


async def test_the_age_of_a_queue_grows_while_its_batch_waits_for_the_database(
    coupon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, reached, go_on = store.lock_campaigns, asyncio.Event(), asyncio.Event()

    async def held(*args: Any, **kwargs: Any) -> Any:
        reached.set()
        await go_on.wait()
        return await lock(*args, **kwargs)

    campaign_id = await open_campaign(coupon, queue_only=True)
    labels = {"partition": str(partition_of(queue_of(campaign_id)))}
    monkeypatch.setattr(store, "lock_campaigns", held)
    tickets = await queued(coupon, campaign_id)
    await reached.wait()
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 60)
    with monkeypatch.context() as patched:
        patched.setattr(queue_consumer, "time", later)
        age_s = REGISTRY.get_sample_value("tally_queue_age_seconds", labels)
    go_on.set()
    await all_issued(coupon, tickets)
    assert age_s is not None
    assert age_s >= 60


# -- one queue of several ------------------------------------------------------------------------


@asynccontextmanager
async def one_replica(urls: ServiceUrls, redis_url: str) -> AsyncIterator[Any]:
    async with (
        replicas(
            1, CouponSettings, build, database_url=urls.runtime, redis_url=redis_url
        ) as addresses,
        channel(*addresses) as to_replica,
    ):
        yield CouponServiceStub(to_replica)


async def campaign_beside(coupon: Any, campaign_id: str) -> str:
    """A campaign whose queue is another one of the same partition."""
    partition = partition_of(queue_of(campaign_id))
    for number in range(100):
        other = await open_campaign(coupon, f"beside-{number}", queue_only=True)
        if partition_of(queue_of(other)) == partition:
            return other
    raise AssertionError


async def test_a_campaign_with_a_later_fence_waits_and_other_queues_go_on(
    coupon_database: ServiceUrls,
    redis_url: str,
    opened: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
    sql: Callable[[str], str],
) -> None:
    """As after a clock was set back and a flush: until a new election gives a later fence."""
    monkeypatch.setattr(queue_consumer, "SUPERSEDED_PAUSE_S", 0.02)
    async with one_replica(coupon_database, redis_url) as coupon:
        fenced = await open_campaign(coupon, queue_only=True)
        beside = await campaign_beside(coupon, fenced)
        sql(f"UPDATE campaigns SET queue_fence = {2**62} WHERE campaign_id = '{fenced}'")
        waiting, others = await queued(coupon, fenced), await queued(coupon, beside)
        with capture_logs() as logged:
            opened.set()
            await all_issued(coupon, others)

            async def events() -> list[str]:
                return [line["event"] for line in logged]

            await until(events, lambda found: "queue_consumer_elected" in found)
        assert "queue_consumer_superseded" in await events()
        assert sql(f"SELECT issued FROM campaigns WHERE campaign_id = '{fenced}'").strip() == "0"
        # In a thread: it may wait for a row that a batch of this very loop has locked.
        await asyncio.to_thread(sql, "UPDATE campaigns SET queue_fence = 0 WHERE queue_fence > 0")
        await all_issued(coupon, waiting)


async def test_a_queue_that_never_gets_empty_leaves_its_place_to_others(
    coupon_database: ServiceUrls,
    redis_url: str,
    opened: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"QUEUES_MAX": 1, "TURNS_MAX": 2, "FAILURES_MAX": 10_000}.items():
        monkeypatch.setattr(queue_consumer, name, value)
    async with one_replica(coupon_database, redis_url) as coupon:
        broken = await open_campaign(coupon, queue_only=True)
        beside = await campaign_beside(coupon, broken)
        failing = Failing(
            store.lock_campaigns, UndefinedTableError, lambda _, __, ids: broken in ids
        )
        monkeypatch.setattr(store, "lock_campaigns", failing)
        await queued(coupon, broken)
        others = await queued(coupon, beside)
        opened.set()
        await all_issued(coupon, others)


async def test_a_queue_that_fails_does_not_end_the_others_of_its_partition(
    coupon_database: ServiceUrls,
    redis_url: str,
    opened: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While another one succeeds, its consumer goes on, however often the first one fails."""
    monkeypatch.setattr(queue_consumer, "FAILURES_MAX", 2)
    monkeypatch.setattr("coupon_service.use_cases.queue_turn.TICKETS_MAX", 1)
    async with one_replica(coupon_database, redis_url) as coupon:
        broken = await open_campaign(coupon, queue_only=True)
        beside = await campaign_beside(coupon, broken)
        failing = Failing(
            store.lock_campaigns,
            UndefinedTableError,
            lambda self, _, ids: broken in ids and self.raised < 3,
        )
        monkeypatch.setattr(store, "lock_campaigns", failing)
        first, others = await queued(coupon, broken), await queued(coupon, beside)

        async def succeed_between(*_: Any) -> None:
            """The other queue has a turn during each pause of the first one."""
            response = await coupon.QueueCoupon(queue(beside, f"more{failing.raised}"))
            await decided(coupon, response.ticket)

        monkeypatch.setattr(queue_consumer._Partition, "_pause", succeed_between)
        with capture_logs() as logged:
            opened.set()
            await all_issued(coupon, first)
        await all_issued(coupon, others)
    assert failing.raised == 3
    assert not [line for line in logged if line["event"] == "queue_consumer_elected"]
