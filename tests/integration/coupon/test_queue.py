"""Tickets as a client sees them: queue, wait, get the coupon or the refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from deploy.local.valkey import ValkeyServer
from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.coupons import (
    HOUR,
    batch_issue,
    campaign,
    decided,
    get_campaign,
    get_ticket,
    issue,
    open_campaign,
    queue,
    watch_ticket,
)
from tests.support.orders import UNKNOWN_ID
from tests.support.refusals import refused
from tests.support.tickets import limit_turns

USERS = [f"u{number}" for number in range(20)]


@pytest.fixture(scope="module")
def redis_url(valkey_server: ValkeyServer) -> str:
    """With Redis in every run: the queues are in it."""
    return valkey_server.url


async def queued(coupon: Any, campaign_id: str, user_id: str, request_id: str = "q1") -> pb.Ticket:
    response = await coupon.QueueCoupon(queue(campaign_id, user_id, request_id))
    ticket: pb.Ticket = response.ticket
    return ticket


async def rest_of(stream: Any) -> list[pb.Ticket]:
    """What the stream sends until it ends."""
    found = []
    while (message := await stream.read()) is not grpc.aio.EOF:
        found.append(message.ticket)
    return found


# -- from the queue to the coupon ----------------------------------------------------------------


async def test_tickets_are_issued_in_the_order_of_queueing(
    coupon: Any, opened: asyncio.Event
) -> None:
    campaign_id = await open_campaign(coupon, quantity=len(USERS), queue_only=True)
    tickets = [await queued(coupon, campaign_id, user_id) for user_id in USERS]
    assert [ticket.position for ticket in tickets] == list(range(1, len(USERS) + 1))
    assert {ticket.state for ticket in tickets} == {pb.Ticket.STATE_WAITING}
    assert [ticket.user_id for ticket in tickets] == USERS
    opened.set()
    final = [await decided(coupon, ticket) for ticket in tickets]
    assert [ticket.coupon.issue_number for ticket in final] == list(range(1, len(USERS) + 1))
    for ticket, before in zip(final, tickets, strict=True):
        assert (ticket.state, ticket.position) == (pb.Ticket.STATE_ISSUED, 0)
        assert ticket.ticket_id == before.ticket_id
        assert ticket.create_time == before.create_time == before.update_time
        assert ticket.update_time == ticket.coupon.issue_time
        assert ticket.coupon.user_id == ticket.user_id
    got = await coupon.GetCampaign(get_campaign(campaign_id))
    assert (got.campaign.issued, got.campaign.queue_only) == (len(USERS), True)


async def test_a_waiting_ticket_is_returned_again_whatever_the_request_id(
    coupon: Any, opened: asyncio.Event
) -> None:
    campaign_id = await open_campaign(coupon, queue_only=True)
    first = await coupon.QueueCoupon(queue(campaign_id, "ann", "q1"))
    same = await coupon.QueueCoupon(queue(campaign_id, "ann", "q1"))
    other = await coupon.QueueCoupon(queue(campaign_id, "ann", "q2"))
    assert (first.replayed, same.replayed, other.replayed) == (False, True, False)
    assert first.ticket == same.ticket == other.ticket
    opened.set()
    issued = await decided(coupon, first.ticket)
    assert issued.state == pb.Ticket.STATE_ISSUED


async def test_an_issued_ticket_is_replayed_and_its_request_id_is_used_up(coupon: Any) -> None:
    one, two = [await open_campaign(coupon, name, queue_only=True) for name in ("one", "two")]
    ticket = await decided(coupon, await queued(coupon, one, "ann"))
    again = await coupon.QueueCoupon(queue(one, "ann"))
    assert (again.replayed, again.ticket) == (True, ticket)
    with refused("REQUEST_ID_REUSED"):
        await coupon.QueueCoupon(queue(two, "ann"))
    with refused("COUPON_ALREADY_ISSUED") as ended:
        await coupon.QueueCoupon(queue(one, "ann", "q2"))
    assert ended.refusal.metadata["coupon_id"] == ticket.coupon.coupon_id


async def test_of_two_campaigns_with_one_request_id_the_later_is_refused(
    coupon: Any, opened: asyncio.Event
) -> None:
    """Until its coupon is issued, nothing is recorded of a request."""
    ids = [await open_campaign(coupon, name, queue_only=True) for name in ("one", "two")]
    tickets = [await queued(coupon, campaign_id, "ann") for campaign_id in ids]
    opened.set()
    final = [await decided(coupon, ticket) for ticket in tickets]
    refused_ = [one.failure_reason for one in final if one.state == pb.Ticket.STATE_REFUSED]
    assert refused_ == ["REQUEST_ID_REUSED"]


async def test_a_ticket_is_refused_when_nothing_is_left(coupon: Any, opened: asyncio.Event) -> None:
    campaign_id = await open_campaign(coupon, quantity=1, queue_only=True)
    tickets = [await queued(coupon, campaign_id, user_id) for user_id in ("ann", "bob")]
    opened.set()
    ann, bob = [await decided(coupon, ticket) for ticket in tickets]
    assert ann.coupon.issue_number == 1
    assert (bob.state, bob.failure_reason) == (pb.Ticket.STATE_REFUSED, "COUPON_SOLD_OUT")
    assert not bob.HasField("coupon")
    assert bob.update_time == ann.update_time
    with refused("COUPON_SOLD_OUT"):
        await coupon.QueueCoupon(queue(campaign_id, "bob"))


async def test_direct_calls_are_refused_where_only_tickets_are_issued(coupon: Any) -> None:
    campaign_id = await open_campaign(coupon, queue_only=True)
    for _ in range(3):
        with refused("CAMPAIGN_QUEUED"):
            await coupon.IssueCoupon(issue(campaign_id, "ann"))
        with refused("CAMPAIGN_QUEUED"):
            await coupon.BatchIssueCoupons(batch_issue(campaign_id, USERS))
    assert (await coupon.GetCampaign(get_campaign(campaign_id))).campaign.issued == 0


async def test_control_where_direct_calls_are_allowed_one_overtakes_the_queue(
    coupon: Any, opened: asyncio.Event
) -> None:
    """What queue_only prevents: a later call gets the earlier coupon."""
    campaign_id = await open_campaign(coupon)
    ticket = await queued(coupon, campaign_id, "ann")
    response = await coupon.IssueCoupon(issue(campaign_id, "bob"))
    opened.set()
    final = await decided(coupon, ticket)
    assert (response.coupon.issue_number, final.coupon.issue_number) == (1, 2)


async def test_one_request_id_of_both_methods_is_two_requests(coupon: Any) -> None:
    campaign_id = await open_campaign(coupon, quantity=2)
    await coupon.IssueCoupon(issue(campaign_id, "ann", "r1"))
    with refused("COUPON_ALREADY_ISSUED"):
        await coupon.QueueCoupon(queue(campaign_id, "ann", "r1"))
    ticket = await decided(coupon, await queued(coupon, campaign_id, "bob", "r1"))
    assert ticket.coupon.issue_number == 2
    with refused("COUPON_ALREADY_ISSUED"):
        await coupon.IssueCoupon(issue(campaign_id, "bob", "r1"))


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("CAMPAIGN_NOT_OPEN", {"starts_in": HOUR, "ends_in": 2 * HOUR}),
        ("CAMPAIGN_NOT_OPEN", {"starts_in": -2 * HOUR, "ends_in": -HOUR}),
    ],
    ids=["scheduled", "ended"],
)
async def test_nobody_queues_for_a_campaign_that_is_not_open(
    coupon: Any, reason: str, fields: dict[str, Any]
) -> None:
    campaign_id = await open_campaign(coupon, queue_only=True, **fields)
    with refused(reason):
        await coupon.QueueCoupon(queue(campaign_id, "ann"))


async def test_a_ticket_is_refused_if_the_campaign_has_ended_meanwhile(
    coupon: Any, opened: asyncio.Event, sql: Callable[[str], str]
) -> None:
    campaign_id = await open_campaign(coupon, queue_only=True)
    ticket = await queued(coupon, campaign_id, "ann")
    sql("UPDATE campaigns SET end_time = now()")
    opened.set()
    final = await decided(coupon, ticket)
    assert (final.state, final.failure_reason) == (pb.Ticket.STATE_REFUSED, "CAMPAIGN_NOT_OPEN")


async def test_a_campaign_that_ends_in_the_last_year_has_a_queue(coupon: Any) -> None:
    request = campaign("long", queue_only=True)
    request.end_time.FromDatetime(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    made = await coupon.CreateCampaign(request)
    ticket = await decided(coupon, await queued(coupon, made.campaign.campaign_id, "ann"))
    assert ticket.coupon.issue_number == 1


# -- reads ---------------------------------------------------------------------------------------


async def test_tickets_of_others_and_of_nobody_are_not_found(
    coupon: Any, opened: asyncio.Event
) -> None:
    campaign_id = await open_campaign(coupon, queue_only=True)
    ticket = await queued(coupon, campaign_id, "ann")
    for state in ("waiting", "issued"):
        if state == "issued":
            opened.set()
            await decided(coupon, ticket)
        with refused("TICKET_NOT_FOUND"):
            await coupon.GetTicket(pb.GetTicketRequest(ticket_id=ticket.ticket_id, user_id="bob"))
    unknown = UNKNOWN_ID[:-8] + campaign_id[-8:]
    late = f"{'f' * 8}-ffff-7fff-8fff-{'f' * 12}"
    version_4 = campaign_id[:14] + "4" + campaign_id[15:]
    for ticket_id in (UNKNOWN_ID, unknown, "nonsense", version_4, late):
        with refused("TICKET_NOT_FOUND"):
            await coupon.GetTicket(pb.GetTicketRequest(ticket_id=ticket_id, user_id="ann"))
    recent = ticket.ticket_id[:20] + "000-000000000000"
    with refused("TICKET_LOST") as ended:
        await coupon.GetTicket(pb.GetTicketRequest(ticket_id=recent, user_id="ann"))
    assert ended.refusal.retry_after_s == 1.0


async def test_a_watched_ticket_moves_up_until_it_is_issued(
    coupon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coupon_service.use_cases.ticket_watch.MESSAGE_PAUSE_S", 0.01)
    monkeypatch.setattr("coupon_service.use_cases.queue_turn.TICKETS_MAX", 1)
    turns = limit_turns(monkeypatch)
    campaign_id = await open_campaign(coupon, quantity=len(USERS), queue_only=True)
    tickets = [await queued(coupon, campaign_id, user_id) for user_id in USERS]
    stream = coupon.WatchTicket(watch_ticket(tickets[-1]))
    seen = [(await stream.read()).ticket]
    for _ in range(2):
        # It has no further turn until its followers have seen the last one.
        turns.release()
        seen.append((await stream.read()).ticket)
    for _ in range(len(USERS)):
        turns.release()
    seen += await rest_of(stream)
    positions = [ticket.position for ticket in seen]
    assert positions == sorted(set(positions), reverse=True)
    assert positions[:3] == [len(USERS), len(USERS) - 1, len(USERS) - 2]
    assert positions[-1] == 0
    assert seen[-1] == await decided(coupon, tickets[-1])
    assert seen[-1].coupon.issue_number == len(USERS)
    assert await rest_of(coupon.WatchTicket(watch_ticket(tickets[-1]))) == [seen[-1]]


async def test_more_tickets_can_be_watched_than_one_read_has(
    coupon: Any, opened: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coupon_service.use_cases.ticket_watch.MESSAGE_PAUSE_S", 0.01)
    campaign_id = await open_campaign(coupon, quantity=len(USERS), queue_only=True)
    tickets = [await queued(coupon, campaign_id, user_id) for user_id in USERS]
    streams = [coupon.WatchTicket(watch_ticket(ticket)) for ticket in tickets]
    for stream in streams:
        await stream.read()
    monkeypatch.setattr("common.batching.loader.DEPTH_MAX", 2)
    monkeypatch.setattr("coupon_service.use_cases.ticket_watch.ROUND_MAX", 2)
    opened.set()
    last = [(await rest_of(stream))[-1] for stream in streams]
    assert {ticket.state for ticket in last} == {pb.Ticket.STATE_ISSUED}


async def test_a_watched_ticket_ends_with_its_refusal(
    coupon: Any, opened: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coupon_service.use_cases.ticket_watch.MESSAGE_PAUSE_S", 0.01)
    campaign_id = await open_campaign(coupon, quantity=1, queue_only=True)
    tickets = [await queued(coupon, campaign_id, user_id) for user_id in ("ann", "bob")]
    stream = coupon.WatchTicket(watch_ticket(tickets[1]))
    assert (await stream.read()).ticket.position == 2
    opened.set()
    *_, last = await rest_of(stream)
    assert last.failure_reason == "COUPON_SOLD_OUT"
    response = await coupon.GetTicket(get_ticket(tickets[1]))
    assert response.ticket == last
