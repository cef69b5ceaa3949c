"""What the queues in Redis hold, and how their texts are written and read.

A text that cannot be read is none: whatever is in Redis, nothing here raises.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from common.ids import is_id
from coupon_service.model.ticket import (
    QueueCoupon,
    QueuedTicket,
    Ticket,
    TicketState,
    is_ticket_id,
    queue_of,
)

_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
_NUMBER: Final = re.compile(r"[0-9]{1,15}")
_TIME: Final = re.compile(r"[0-9]{1,17}")
"""In microseconds, until the year 5138: one of 18 digits may be later than a datetime can be."""
_REASON: Final = re.compile(r"[A-Z][A-Z_]{0,63}")
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_US: Final = timedelta(microseconds=1)
_MS: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The ticket of a user and campaign that waits."""

    ticket_id: str
    position: int
    request_id: str
    """Of the call that queued it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a queue."""

    entry_id: str
    token: str
    """What it is finished by."""
    sequence: int
    ticket: QueuedTicket | None
    """None: it cannot be read, or belongs to another queue."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first entries of a queue."""

    waiting: int
    """All entries of the queue."""
    age_s: float
    """How long the first entry has been waiting, by the server's clock."""
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Refused:
    """A ticket that no coupon is issued by, from this time of the database's clock on."""

    reason: str
    time: datetime


@dataclass(frozen=True, slots=True)
class IssuedBefore:
    """The user had the coupon already, by an earlier ticket of the same request."""

    ticket_id: str


FinalState = Refused | IssuedBefore


@dataclass(frozen=True, slots=True)
class Finished:
    """An entry whose ticket is decided."""

    entry: Entry
    final: FinalState | None = None
    """None: a coupon carries the ticket, or there is no ticket."""


Found = Ticket | IssuedBefore | None
"""A ticket that waits or was refused, the one whose coupon it has, or nothing in Redis."""


def expiry_ms(end_time: datetime, keep: timedelta) -> int:
    """When the keys of a queue end, in milliseconds: so long after its campaign, in any year."""
    return (end_time - _EPOCH + keep) // _MS


def age_s(entry_id: str, now_ms: int) -> float:
    """How long the entry has been there, by the server's clock."""
    queued_ms = entry_id.partition("-")[0]
    return max(0.0, (now_ms - int(queued_ms)) / 1000) if _NUMBER.fullmatch(queued_ms) else 0.0


def entry_of(queue: str, entry_id: str, token: str) -> Entry:
    """The entry of this queue in a token of READ."""
    words = token.split(" ")
    if len(words) != 5:
        return Entry(entry_id, token, 0, None)
    sequence, ticket_id, campaign_id, user_id, request_id = words
    readable = (
        _NUMBER.fullmatch(sequence)
        and is_ticket_id(ticket_id)
        and is_id(campaign_id)
        and queue_of(ticket_id) == queue_of(campaign_id) == queue
        and _CLIENT_ID.fullmatch(user_id)
        and _CLIENT_ID.fullmatch(request_id)
    )
    if not readable:
        return Entry(entry_id, token, 0, None)
    ticket = QueuedTicket(ticket_id, QueueCoupon(campaign_id, user_id, request_id))
    return Entry(entry_id, token, int(sequence), ticket)


def final_text(final: FinalState) -> str:
    """What FINISH keeps of a final state."""
    if isinstance(final, IssuedBefore):
        return final.ticket_id
    return f"{final.reason} {(final.time - _EPOCH) // _US}"


def found_of(ticket_id: str, state: object) -> Found:
    """What a text of LOOK_UP says; nothing if it cannot be read."""
    words = state.split(" ") if isinstance(state, str) else []
    if len(words) < 4 or not is_id(words[1]) or not _CLIENT_ID.fullmatch(words[2]):
        return None
    kind, campaign_id, user_id, text, *rest = words
    if kind == "waiting" and not rest and _NUMBER.fullmatch(text):
        return Ticket.waiting(ticket_id, campaign_id, user_id, int(text))
    if kind == "final" and not rest and is_ticket_id(text):
        return IssuedBefore(text)
    if kind == "final" and _REASON.fullmatch(text) and len(rest) == 1 and _TIME.fullmatch(rest[0]):
        time = _EPOCH + int(rest[0]) * _US
        return Ticket(
            ticket_id, campaign_id, user_id, TicketState.REFUSED, time, failure_reason=text
        )
    return None
