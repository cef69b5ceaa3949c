"""Tickets over four replicas: the order of issue, and a consumer that comes too late.

Every race has its control: without the guard, the same calls must do the damage that it prevents.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from coupon_service import tables
from coupon_service.model.campaign import Campaign
from coupon_service.model.coupon import Coupon
from coupon_service.model.ticket import QueuedCampaign, Superseded
from coupon_service.settings import CouponSettings
from coupon_service.store import coupon as coupon_store
from coupon_service.store import ticket as store
from coupon_service.use_cases.ticket_decider import TicketLane
from coupon_service.wiring import build
from deploy.local.valkey import ValkeyServer
from tally.coupon.v1 import coupon_pb2 as pb
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tests.support.coupons import decided, get_campaign, issue, open_campaign, queue
from tests.support.crowd import RIVALS, Crowd, crowd_fixture, without_redis
from tests.support.guards import forget_row_locks
from tests.support.rendezvous import meet_after
from tests.support.tickets import hold_queues, lane_on, tickets_of

crowd = crowd_fixture("coupon", CouponServiceStub, CouponSettings, build, count=4)


@pytest.fixture(scope="module")
def redis_url(valkey_server: ValkeyServer) -> str:
    """The queues are in Redis."""
    return valkey_server.url


async def final_of(crowd: Crowd[Any], responses: list[Any]) -> list[pb.Ticket]:
    """One after another: they are decided in about this order."""
    return [await decided(crowd.turn(turn), each.ticket) for turn, each in enumerate(responses)]


# -- the order -----------------------------------------------------------------------------------


async def test_tickets_queued_over_four_replicas_are_issued_in_their_order(
    crowd: Crowd[Any],
) -> None:
    campaign_id = await open_campaign(crowd.turn(0), quantity=RIVALS, queue_only=True)
    responses = [
        await crowd.turn(turn).QueueCoupon(queue(campaign_id, f"u{turn}")) for turn in range(RIVALS)
    ]
    final = await final_of(crowd, responses)
    assert [ticket.coupon.issue_number for ticket in final] == list(range(1, RIVALS + 1))


async def test_a_crowd_in_the_queue_gets_exactly_the_quantity(crowd: Crowd[Any]) -> None:
    quantity = RIVALS // 2
    campaign_id = await open_campaign(crowd.turn(0), quantity=quantity, queue_only=True)
    requests = [queue(campaign_id, f"u{user}") for user in range(RIVALS)]
    responses, refusals = await crowd.race("QueueCoupon", requests)
    final = await final_of(crowd, responses)
    numbers = [one.coupon.issue_number for one in final if one.state == pb.Ticket.STATE_ISSUED]
    assert sorted(numbers) == list(range(1, quantity + 1))
    refusals.update(one.failure_reason for one in final if one.failure_reason)
    assert refusals == {"COUPON_SOLD_OUT": RIVALS - quantity}
    assert crowd.number("SELECT count(*) FROM coupons") == quantity


async def test_hundred_calls_of_one_user_are_one_ticket_and_one_coupon(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A call that comes after the first ticket was issued gets another one, which is refused.
    goes_on = hold_queues(monkeypatch)
    campaign_id = await open_campaign(crowd.turn(0), quantity=RIVALS, queue_only=True)
    requests = [queue(campaign_id, "ann", f"q{number}") for number in range(RIVALS)]
    responses, refusals = await crowd.race("QueueCoupon", requests)
    goes_on.set()
    assert set(refusals) <= {"COUPON_ALREADY_ISSUED"}
    assert len({response.ticket.ticket_id for response in responses}) == 1
    await final_of(crowd, responses[:1])
    assert crowd.number("SELECT count(*) FROM coupons") == 1


async def test_tickets_and_direct_calls_share_the_quantity(crowd: Crowd[Any]) -> None:
    campaign_id = await open_campaign(crowd.turn(0), quantity=RIVALS)
    users = [f"u{number}" for number in range(RIVALS)]
    (queued, _), (issued, refusals) = await asyncio.gather(
        crowd.race("QueueCoupon", [queue(campaign_id, user) for user in users]),
        crowd.race("IssueCoupon", [issue(campaign_id, user) for user in users], until_final=True),
    )
    final = await final_of(crowd, queued)
    by_ticket = [one for one in final if one.state == pb.Ticket.STATE_ISSUED]
    assert len(issued) + len(by_ticket) == RIVALS
    assert set(refusals) <= {"COUPON_ALREADY_ISSUED"}
    assert crowd.number("SELECT issued FROM campaigns") == RIVALS
    assert crowd.number("SELECT issued_by_ticket FROM campaigns") == len(by_ticket)
    assert crowd.number("SELECT count(DISTINCT user_id) FROM coupons") == RIVALS


# -- the guards, without a queue -----------------------------------------------------------------


@pytest.fixture
async def lanes(crowd: Crowd[Any]) -> AsyncIterator[tuple[TicketLane, TicketLane]]:
    """The lanes of two consumers of one partition, as if both held its lock."""
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(lane_on(crowd.urls.runtime)) for _ in range(2)
        ]
        yield one, other


@without_redis
@pytest.mark.parametrize("guard", ["row lock", "statement", "none"])
async def test_a_superseded_consumer_issues_nothing_any_more(
    crowd: Crowd[Any],
    lanes: tuple[TicketLane, TicketLane],
    monkeypatch: pytest.MonkeyPatch,
    guard: str,
) -> None:
    """Paused with a batch in hand. The next one refuses its ticket, and the campaign goes on.

    Without the row's lock it is paused when it has read the row, with a fence that is still lower.
    """
    late, next_one = lanes
    campaign_id = await open_campaign(crowd.turn(0), queue_only=True)
    guarded = guard != "none"
    if guard == "none":
        monkeypatch.setattr(QueuedCampaign, "admit", lambda *_: True)
    if guard == "statement":
        forget_row_locks(monkeypatch)
    reached, go_on = asyncio.Event(), asyncio.Event()
    lock = store.lock_campaigns

    async def paused(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(store, "lock_campaigns", lock)
        read = await lock(*args, **kwargs) if guard == "statement" else None
        reached.set()
        await go_on.wait()
        return read or await lock(*args, **kwargs)

    monkeypatch.setattr(store, "lock_campaigns", paused)
    tickets = tickets_of(campaign_id, ["ann"], fence=1)
    submitted = asyncio.create_task(late.submit(tickets))
    await reached.wait()
    crowd.sql("UPDATE campaigns SET end_time = now(), start_time = now() - interval '1 hour'")
    (refused_,) = await decisions(next_one, tickets_of(campaign_id, ["ann"], fence=2))
    assert not isinstance(refused_.outcome, Coupon)
    crowd.sql("UPDATE campaigns SET end_time = now() + interval '1 hour'")
    go_on.set()
    assert isinstance(await submitted, Superseded) == guarded
    # Without the fence: a user who was refused has a coupon.
    assert crowd.number("SELECT count(*) FROM coupons") == (0 if guarded else 1)
    assert crowd.number("SELECT queue_fence FROM campaigns") == (2 if guarded else 0)


async def decisions(lane: TicketLane, command: Any) -> Any:
    decided_ = await lane.submit(command)
    assert not isinstance(decided_, Superseded)
    return decided_


@without_redis
@pytest.mark.parametrize("guard", ["row lock", "constraints", "none"])
async def test_two_consumers_at_once_issue_each_ticket_once(
    crowd: Crowd[Any],
    lanes: tuple[TicketLane, TicketLane],
    monkeypatch: pytest.MonkeyPatch,
    guard: str,
) -> None:
    """With one fence, as if Redis had granted the lock twice: each has read the same tickets."""
    campaign_id = await open_campaign(crowd.turn(0), quantity=RIVALS, queue_only=True)
    if guard != "constraints":
        crowd.sql(
            f"ALTER TABLE coupons DROP CONSTRAINT {tables.USER_ONCE},"
            f" DROP CONSTRAINT {tables.NUMBER_ONCE}; DROP INDEX {tables.TICKET_ONCE};"
            "ALTER TABLE answers DROP CONSTRAINT answers_pkey"
        )
        crowd.sql(
            "ALTER TABLE answers ADD CONSTRAINT answers_pkey"
            " UNIQUE (method, scope, request_id, create_time)"
        )
    if guard != "row lock":
        forget_row_locks(monkeypatch)
        # When each has read that there are no coupons yet.
        meeting = meet_after(monkeypatch, coupon_store, "find_issued")
    tickets = tickets_of(campaign_id, [f"u{number}" for number in range(RIVALS)])
    outcomes = await asyncio.gather(*(decisions(lane, tickets) for lane in lanes))
    coupons = crowd.number("SELECT count(*) FROM coupons")
    if guard == "none":
        assert meeting.met
        assert coupons > RIVALS
        return
    assert coupons == RIVALS
    for found in outcomes:
        assert [one.outcome.issue_number for one in found] == list(range(1, RIVALS + 1))


@without_redis
@pytest.mark.parametrize("guard", ["model", "constraint", "none"])
async def test_only_tickets_are_issued_where_the_campaign_is_queue_only(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    """The constraint alone refuses what a replica of an earlier release would issue."""
    campaign_id = await open_campaign(crowd.turn(0), queue_only=True)
    if guard != "model":
        monkeypatch.setattr(Campaign, "check_not_queued", lambda _: None)
    if guard != "constraint":
        crowd.sql(f"ALTER TABLE campaigns DROP CONSTRAINT {tables.QUEUE_ONLY}")
    requests = [issue(campaign_id, f"u{number}") for number in range(RIVALS)]
    issued, refusals = await crowd.race("IssueCoupon", requests, until_final=True)
    if guard == "none":
        assert len(issued) == 10
        return
    assert refusals == {"CAMPAIGN_QUEUED": RIVALS}
    got = await crowd.turn(1).GetCampaign(get_campaign(campaign_id))
    assert got.campaign.issued == 0
