"""Issues the coupons of tickets, in a lane: all that a consumer has read, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from common.batching.decider import Decider, Saved
from common.batching.lane import Lane
from common.batching.outcomes import RowLocked
from common.db.database import Database
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.row_locks import AlsoRead, read_clock
from common.db.statements import Connection
from common.errors import ConflictRetriesExhausted, Refusal, RequestIdReused
from common.ids import new_id
from common.locking.locks import Locks
from common.request_key import RequestKey
from coupon_service.errors import CampaignNotFound, CouponAlreadyIssued, CouponSoldOut
from coupon_service.locking import STRATEGIES
from coupon_service.model.coupon import Claim, Coupon
from coupon_service.model.ticket import (
    Decided,
    Decision,
    IssueTickets,
    QueueCoupon,
    QueuedCampaign,
    QueuedTicket,
    Superseded,
)
from coupon_service.store import coupon as coupon_store
from coupon_service.store import ticket as store
from coupon_service.tables import ISSUED_WITHIN_QUANTITY, NUMBER_ONCE, TICKET_ONCE, USER_ONCE
from coupon_service.use_cases.issue import ISSUED_BODY

TicketLane = Lane[IssueTickets, Decided]


def ticket_lane(database: Database, locks: Locks, idempotency: IdempotencyStore) -> TicketLane:
    """The lane that issues coupons by ticket.

    A command has the tickets of one campaign, and is decided as a whole: a batch that is divided,
    or whose campaign is locked, does not change their order.
    """
    return Lane(
        "issue_tickets",
        database,
        _Decider(idempotency),
        locks,
        STRATEGIES,
        translate=_translate,
    )


def coupon_of_request(request: QueueCoupon, coupon: Coupon) -> Coupon:
    """The coupon that the user has, if this request issued it; its record may have been deleted.

    Raises CouponAlreadyIssued.
    """
    if coupon.ticket_id is None or coupon.request_id != request.request_id:
        raise CouponAlreadyIssued(
            campaign_id=coupon.campaign_id, user_id=coupon.user_id, coupon_id=coupon.coupon_id
        )
    return coupon.unused(coupon.issue_time)


def _translate(constraint: str, command: IssueTickets) -> Refusal | None:
    """The refusal for a violated constraint: of one ticket, since the consumer divides others."""
    request = command.tickets[0].request
    if constraint == USER_ONCE:
        return CouponAlreadyIssued(campaign_id=command.campaign_id, user_id=request.user_id)
    if constraint == ISSUED_WITHIN_QUANTITY:
        return CouponSoldOut(campaign_id=command.campaign_id, user_id=request.user_id)
    if constraint == TICKET_ONCE:
        # Only if the queue is not what was written to it: another coupon carries the ticket.
        return RequestIdReused(request_id=request.request_id)
    if constraint == NUMBER_ONCE:
        # Only without the row lock: another batch took this number, but more may be left.
        return ConflictRetriesExhausted(campaign_id=command.campaign_id)
    return None


@dataclass(slots=True)
class _Batch:
    """The locked campaigns of one transaction, and the coupons of its users."""

    campaigns: dict[str, QueuedCampaign]
    blocked: frozenset[str]
    now: datetime
    coupons: dict[Claim, Coupon] = field(default_factory=dict)
    new: list[Coupon] = field(default_factory=list)
    changed: dict[str, QueuedCampaign] = field(default_factory=dict)


class _Decider(Decider[IssueTickets, Decided, _Batch]):
    async def load(
        self,
        connection: Connection,
        commands: Sequence[IssueTickets],
        records: AlsoRead,
        *,
        wait_for_locks: bool,
    ) -> _Batch:
        campaign_ids = {command.campaign_id for command in commands}
        locked = await store.lock_campaigns(
            connection, campaign_ids, wait_for_locks=wait_for_locks, also=records
        )
        now = locked.now or await read_clock(connection)
        return _Batch(locked.found, locked.blocked, now)

    async def load_after_records(
        self, connection: Connection, batch: _Batch, commands: Sequence[IssueTickets]
    ) -> None:
        claims = {ticket.request.claim for command in commands for ticket in command.tickets}
        batch.coupons = await coupon_store.find_issued(connection, claims)

    def keys(self, command: IssueTickets) -> Sequence[RequestKey]:
        return [ticket.request.key for ticket in command.tickets]

    def blocked(self, batch: _Batch, command: IssueTickets) -> RowLocked | None:
        return RowLocked(command.campaign_id) if command.campaign_id in batch.blocked else None

    def decide(self, batch: _Batch, records: IdempotencyRecords, command: IssueTickets) -> Decided:
        campaign = batch.campaigns.get(command.campaign_id)
        if campaign is not None:
            if not campaign.admit(command.fence):
                return Superseded()
            # Also if every ticket is refused: those of an earlier consumer must not be issued then.
            batch.changed[command.campaign_id] = campaign
        decisions = []
        for ticket in command.tickets:
            outcome: Coupon | Refusal
            try:
                outcome = _issue(batch, campaign, records, ticket)
            except Refusal as refusal:
                outcome = refusal
            decisions.append(Decision(outcome, batch.now))
        return decisions

    async def save(
        self, connection: Connection, batch: _Batch, commands: Sequence[IssueTickets]
    ) -> Saved:
        changed = list(batch.changed.values())
        return Saved([*store.saving_issued(changed), *coupon_store.adding(batch.new)])


def _issue(
    batch: _Batch,
    campaign: QueuedCampaign | None,
    records: IdempotencyRecords,
    ticket: QueuedTicket,
) -> Coupon:
    """The ticket's coupon, new or as it was issued before. Raises a Refusal, and then does nothing.

    It does not have this ticket if an earlier one of the same request issued it.
    """
    request = ticket.request
    replayed = records.replay(request, ISSUED_BODY)
    if replayed is not None:
        return replayed.value
    if campaign is None:
        raise CampaignNotFound(campaign_id=request.campaign_id)
    # Before the campaign is checked: COUPON_ALREADY_ISSUED goes before COUPON_SOLD_OUT.
    existing = batch.coupons.get(request.claim)
    if existing is not None:
        records.replays = True
        return coupon_of_request(request, existing)
    coupon = campaign.issue(ticket, new_id())
    batch.coupons[request.claim] = coupon
    batch.new.append(coupon)
    return records.answer(request, coupon, ISSUED_BODY).value
