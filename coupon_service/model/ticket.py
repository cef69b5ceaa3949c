"""Tickets: places in the queue for a campaign's coupons, and what their ids say."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from common.errors import Refusal
from common.ids import is_id, new_id
from common.request_key import RequestKey, digest_of
from coupon_service.model.campaign import Campaign
from coupon_service.model.coupon import Claim, Coupon, IssueCoupon

PARTITIONS: Final = 4
"""Groups of queues, each with one consumer at a time over all replicas. Stored names depend on it:
another number would leave the tickets that wait where no consumer looks."""
_QUEUE_DIGITS: Final = 8
_VERSION_AT: Final = 14
_TIME_MAX: Final = "e677d21fdbff"
"""The last millisecond of the year 9999."""
_AHEAD_MAX: Final = timedelta(minutes=1)
"""How far the clock may lag behind the one that made a ticket, after a failover of the database."""


class TicketState(enum.StrEnum):
    """The state of a ticket."""

    WAITING = "WAITING"
    ISSUED = "ISSUED"
    REFUSED = "REFUSED"


# -- ids -----------------------------------------------------------------------------------------


def queue_of(id_: str) -> str:
    """The name of the queue of a campaign, or of a ticket: the last digits of its id.

    So a ticket's id names its queue. Two campaigns may share a queue by chance; each entry
    names its campaign.
    """
    return id_[-_QUEUE_DIGITS:]


def partition_of(queue: str) -> int:
    """The partition of a queue, from 0."""
    return int(queue, 16) % PARTITIONS


def new_ticket_id(campaign_id: str, now: datetime) -> str:
    """An id for a ticket that is queued at this time: a UUIDv7 that ends as the campaign's id."""
    return new_id(at=now)[:-_QUEUE_DIGITS] + queue_of(campaign_id)


def is_ticket_id(text: str) -> bool:
    """Whether ``text`` has the form of a ticket's id."""
    return is_id(text) and text[_VERSION_AT] == "7" and _milliseconds(text) <= _TIME_MAX


def time_of(ticket_id: str) -> datetime:
    """When the ticket was queued, to the millisecond."""
    milliseconds = int(_milliseconds(ticket_id), 16)
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)


def _milliseconds(id_: str) -> str:
    """The time in a UUIDv7, in hexadecimal digits."""
    return id_[:8] + id_[9:13]


def may_be_lost(ticket_id: str, now: datetime, retention: timedelta) -> bool:
    """Whether a ticket that is found nowhere was lost: later, even a refused one is deleted."""
    return -_AHEAD_MAX < now - time_of(ticket_id) < retention


# -- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QueueCoupon:
    """Queue for one coupon of the campaign, for the user."""

    campaign_id: str
    user_id: str
    request_id: str

    @property
    def claim(self) -> Claim:
        return Claim(self.campaign_id, self.user_id)

    @property
    def key(self) -> RequestKey:
        return RequestKey("QueueCoupon", self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.campaign_id)


@dataclass(frozen=True, slots=True)
class QueuedTicket:
    """A ticket whose turn it is."""

    ticket_id: str
    request: QueueCoupon


@dataclass(frozen=True, slots=True)
class IssueTickets:
    """Issue the coupons of a campaign's next tickets, in their order, all in one transaction."""

    campaign_id: str
    fence: int
    """Of the consumer's lock: a later consumer has a higher one."""
    tickets: tuple[QueuedTicket, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a ticket, at this time of the database's clock."""

    outcome: Coupon | Refusal
    time: datetime


@dataclass(frozen=True, slots=True)
class Superseded:
    """Nothing was decided: a later consumer has written the campaign."""


Decided = Sequence[Decision] | Superseded
"""One decision for each ticket of an IssueTickets, in their order."""


@dataclass(slots=True)
class QueuedCampaign:
    """A campaign whose coupons are issued by ticket, its row locked."""

    campaign: Campaign
    issued_by_ticket: int
    queue_fence: int
    """The highest fence of a consumer that has decided a ticket of it."""

    def admit(self, fence: int) -> bool:
        """Whether the consumer with this fence may decide; then no earlier one may any more."""
        if fence < self.queue_fence:
            return False
        self.queue_fence = fence
        return True

    def issue(self, ticket: QueuedTicket, coupon_id: str) -> Coupon:
        """The campaign's next coupon. Raises CampaignNotOpen or CouponSoldOut.

        The caller has checked that the user has no coupon of the campaign.
        """
        request = ticket.request
        command = IssueCoupon(request.campaign_id, request.user_id, request.request_id)
        coupon = Coupon.issue(self.campaign, command, coupon_id)
        self.issued_by_ticket += 1
        return replace(coupon, ticket_id=ticket.ticket_id)


# -- the ticket ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket as it is now."""

    ticket_id: str
    campaign_id: str
    user_id: str
    state: TicketState
    update_time: datetime
    position: int = 0
    """The place in the queue, from 1; 0 when it is issued or refused."""
    coupon: Coupon | None = None
    failure_reason: str = ""

    @classmethod
    def waiting(cls, ticket_id: str, campaign_id: str, user_id: str, position: int) -> Ticket:
        created = time_of(ticket_id)
        return cls(ticket_id, campaign_id, user_id, TicketState.WAITING, created, position)

    @classmethod
    def issued(cls, ticket_id: str, coupon: Coupon) -> Ticket:
        return cls(
            ticket_id,
            coupon.campaign_id,
            coupon.user_id,
            TicketState.ISSUED,
            coupon.issue_time,
            coupon=coupon,
        )

    @property
    def create_time(self) -> datetime:
        return time_of(self.ticket_id)

    @property
    def final(self) -> bool:
        """Whether it is issued or refused."""
        return self.state is not TicketState.WAITING
