"""Users who queue for a coupon until they have it: each sees one coupon, which the books have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from tally.coupon.v1 import coupon_pb2 as pb
from tests.chaos.calls import call_once
from tests.chaos.history import Outcome
from tests.support.coupons import get_ticket, queue

if TYPE_CHECKING:
    from tests.chaos.load import Traffic
    from tests.faults.load import Customers

QUEUERS: Final = 3
PAUSE_S: Final = 0.1
ISSUED_BY_TICKET: Final = (
    "SELECT user_id, coupon_id::text FROM coupons WHERE user_id LIKE 'queuer-%'"
)


async def queue_for_coupons(traffic: Traffic, crowd: Customers) -> None:
    """A new user each time, who queues again when the ticket is lost.

    Not in the history of requests: a repeated QueueCoupon returns the ticket as it is then.
    """
    while not traffic.stopping:
        await _queue(traffic, crowd, f"queuer-{next(traffic.numbers)}")


async def _queue(traffic: Traffic, crowd: Customers, user_id: str) -> None:
    ticket: pb.Ticket | None = None
    while not traffic.stopping:
        method: Any = crowd.coupon.QueueCoupon
        request: Any = queue(crowd.queued_campaign_id, user_id)
        if ticket is not None and traffic.random.random() < 0.8:
            method, request = crowd.coupon.GetTicket, get_ticket(ticket)
        call = await call_once(method, request, traffic.deadline_s())
        ticket = call.response.ticket if call.outcome is Outcome.OK else None
        if ticket is not None and ticket.state == pb.Ticket.STATE_ISSUED:
            coupon_id = ticket.coupon.coupon_id
            traffic.history.tickets.setdefault(user_id, set()).add(coupon_id)
            if traffic.random.random() < 0.5:
                return
        await asyncio.sleep(PAUSE_S)


def wrong_tickets(seen: Mapping[str, set[str]], issued: Mapping[str, str]) -> Iterator[str]:
    """Coupons that users were shown and the books do not have."""
    for user_id, coupon_ids in seen.items():
        if coupon_ids != {issued.get(user_id, "")}:
            yield f"tickets of {user_id}: shown {coupon_ids}, issued {issued.get(user_id)}"


def by_user(rows: Any) -> dict[str, str]:
    return {row["user_id"]: row["coupon_id"] for row in rows}
