"""Queues for coupons, and reads what became of a ticket: from the queue, then from its coupon."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client import Counter

from common.batching.loader import BatchLoader
from common.db.database import Database
from common.db.idempotency import Record
from common.db.repeat import in_transaction
from common.db.transactions import commit_as_a_write
from common.ids import is_id
from common.locking.redis import RedisUnavailable
from common.metrics import REGISTRY, from_zero
from common.request_key import Result
from coupon_service.errors import CampaignNotFound, QueueFull, TicketLost, TicketNotFound
from coupon_service.model.coupon import Coupon
from coupon_service.model.ticket import (
    QueueCoupon,
    Ticket,
    is_ticket_id,
    may_be_lost,
    new_ticket_id,
    queue_of,
)
from coupon_service.store import coupon as coupon_store
from coupon_service.store import ticket as store
from coupon_service.store.queue import LOOK_UP_MAX, QueueIsFull, Queues
from coupon_service.store.queue_entries import Found, IssuedBefore
from coupon_service.use_cases.issue import ISSUED_BODY
from coupon_service.use_cases.ticket_decider import coupon_of_request

_queued: Final = Counter(
    "tally_queue_requests",
    "Calls that reached the queue of a campaign, by outcome: queued, found (the user has a waiting "
    "ticket), full or lost (the queue cannot be reached).",
    ("outcome",),
    registry=REGISTRY,
)
from_zero(_queued, ("queued", "found", "full", "lost"))


class _Absent(enum.Enum):
    """The queue cannot be reached."""

    ABSENT = enum.auto()


_ABSENT: Final = _Absent.ABSENT
Read = Ticket | TicketLost | TicketNotFound | None
"""A ticket, why there is none, or None: it has no coupon, and the queue cannot be reached."""


class Tickets:
    """The tickets of all campaigns, as one replica queues and reads them."""

    def __init__(
        self, database: Database, queues: Queues, *, on_queued: Callable[[str], None]
    ) -> None:
        """``on_queued`` is called with the name of the queue that has a new ticket."""
        self._database = database
        self._queues = queues
        self._on_queued = on_queued
        self._snapshots = BatchLoader("queue_coupon", database, coupon_store.read_snapshots)
        self._coupons = BatchLoader("ticket", database, store.find_issued)

    async def close(self) -> None:
        """Wait a moment for reads in progress."""
        await self._snapshots.close()
        await self._coupons.close()

    async def queue(self, command: QueueCoupon) -> Result[Ticket]:
        """Queue for a coupon, or return the ticket that waits or has issued it.

        Raises CampaignNotFound, InvalidField for a campaign with shares, CouponAlreadyIssued,
        CampaignNotOpen, CouponSoldOut, QueueFull, TicketLost, RequestIdReused, DatabaseUnavailable
        or Overloaded.
        """
        campaign_id = command.campaign_id
        if not is_id(campaign_id):
            raise CampaignNotFound(campaign_id=campaign_id)
        snapshot = await self._snapshots.load(command)
        issued = _issued_before(command, snapshot.record, snapshot.coupon)
        if issued is not None:
            # What wrote it may have lost its standby before that had it.
            await in_transaction(
                self._database, "replay_ticket", commit_as_a_write, idempotent=True, of_call=True
            )
            return Result(issued, replayed=True)
        campaign = snapshot.campaign
        if campaign is None:
            raise CampaignNotFound(campaign_id=campaign_id)
        campaign.check_queueable()
        campaign.admit(command.user_id)
        ticket_id = new_ticket_id(campaign_id, campaign.as_of)
        try:
            found = await self._queues.enqueue(command, ticket_id, campaign.end_time)
        except QueueIsFull:
            _queued.labels("full").inc()
            raise QueueFull(campaign_id=campaign_id, waiting_max=self._queues.waiting_max) from None
        except RedisUnavailable:
            _queued.labels("lost").inc()
            raise TicketLost(campaign_id=campaign_id, user_id=command.user_id) from None
        new = found.ticket_id == ticket_id
        _queued.labels("queued" if new else "found").inc()
        if new:
            self._on_queued(queue_of(ticket_id))
        ticket = Ticket.waiting(found.ticket_id, campaign_id, command.user_id, found.position)
        return Result(ticket, replayed=not new and found.request_id == command.request_id)

    async def get(self, ticket_id: str, user_id: str) -> Ticket:
        """The user's ticket now.

        Raises TicketNotFound, TicketLost, DatabaseUnavailable or Overloaded.
        """
        (found,) = await self.read([ticket_id])
        if found is None:
            raise TicketLost(ticket_id=ticket_id)
        if isinstance(found, TicketLost):
            raise found
        if isinstance(found, TicketNotFound) or found.user_id != user_id:
            raise TicketNotFound(user_id=user_id, ticket_id=ticket_id)
        return found

    async def read(self, ticket_ids: Sequence[str]) -> list[Read]:
        """The tickets, in their order: one call for each queue, and one read of their coupons.

        Raises DatabaseUnavailable or Overloaded.
        """
        wanted = [ticket_id for ticket_id in ticket_ids if is_ticket_id(ticket_id)]
        states = await self._look_up(wanted)
        # After the queue: a ticket leaves it when its coupon is committed.
        found = dict(
            zip(
                states,
                await asyncio.gather(*(self._read(*each) for each in states.items())),
                strict=True,
            )
        )
        return [
            found[ticket_id] if ticket_id in found else TicketNotFound(ticket_id=ticket_id)
            for ticket_id in ticket_ids
        ]

    async def _look_up(self, ticket_ids: Iterable[str]) -> dict[str, Found | _Absent]:
        """What the queues say of the tickets."""
        by_queue: dict[str, list[str]] = {}
        for ticket_id in ticket_ids:
            by_queue.setdefault(queue_of(ticket_id), []).append(ticket_id)
        parts = [
            (queue, ids[at : at + LOOK_UP_MAX])
            for queue, ids in by_queue.items()
            for at in range(0, len(ids), LOOK_UP_MAX)
        ]
        states: dict[str, Found | _Absent] = {}
        for found in await asyncio.gather(*(self._look_up_part(*part) for part in parts)):
            states |= found
        return states

    async def _look_up_part(self, queue: str, ids: list[str]) -> dict[str, Found | _Absent]:
        try:
            found = await self._queues.look_up(queue, ids)
        except RedisUnavailable:
            return dict.fromkeys(ids, _ABSENT)
        return dict(zip(ids, found, strict=True))

    async def _read(self, ticket_id: str, state: Found | _Absent) -> Read:
        """The ticket as its queue has it, or else by its coupon, or why there is none."""
        if isinstance(state, Ticket):
            return state
        carried = state.ticket_id if isinstance(state, IssuedBefore) else ticket_id
        found = await self._coupons.load(carried)
        if found.coupon is not None:
            return Ticket.issued(ticket_id, found.coupon)
        if state is _ABSENT:
            # It may wait there, however old it is.
            return None
        if not may_be_lost(ticket_id, found.now, self._queues.keep):
            return TicketNotFound(ticket_id=ticket_id)
        return TicketLost(ticket_id=ticket_id)


def _issued_before(
    command: QueueCoupon, record: Record | None, coupon: Coupon | None
) -> Ticket | None:
    """The final ticket, if the request has issued its coupon.

    Raises RequestIdReused or CouponAlreadyIssued.
    """
    if record is not None:
        issued = ISSUED_BODY.validate_json(record.body_for(command))
    elif coupon is not None:
        issued = coupon_of_request(command, coupon)
    else:
        return None
    assert issued.ticket_id is not None, "issued by ticket"
    return Ticket.issued(issued.ticket_id, issued)
