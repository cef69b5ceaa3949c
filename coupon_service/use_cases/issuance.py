"""Issues the coupons of campaigns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from common.batching.decider import Decider, Saved
from common.batching.lane import Lane
from common.batching.loader import BatchLoader
from common.batching.outcomes import RowLocked
from common.db.database import Database
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.row_locks import AlsoRead
from common.db.statements import Connection
from common.errors import ConflictRetriesExhausted, Refusal
from common.ids import is_id, new_id
from common.locking.locks import Locks
from common.request_key import RequestKey
from coupon_service.errors import (
    CampaignNotFound,
    CampaignNotOpen,
    CampaignQueued,
    CouponAlreadyIssued,
    CouponSoldOut,
)
from coupon_service.locking import STRATEGIES
from coupon_service.model.campaign import Campaign, CampaignState
from coupon_service.model.coupon import Claim, Coupon, IssueCoupon
from coupon_service.store import campaign as store
from coupon_service.store import coupon as coupon_store
from coupon_service.tables import ISSUED_WITHIN_QUANTITY, NUMBER_ONCE, QUEUE_ONLY, USER_ONCE
from coupon_service.use_cases.issue import ISSUED_BODY, HasShares, Issued, replay_or_refuse
from coupon_service.use_cases.share import Shares

_FINAL: Final = (CampaignState.SOLD_OUT, CampaignState.ENDED)
OVER_MAX: Final = 1_000
"""Campaigns that a replica remembers to be over; beyond them it forgets the earliest."""


class Issuance:
    """Issues coupons in one replica.

    Once the lane has refused a call since its campaign is over, a read without a lock refuses those
    that come later. Before that it would refuse few, and be one more statement for all others.

    The lane finds out that a campaign has shares, which then have a lane of their own.
    """

    def __init__(
        self, database: Database, locks: Locks, idempotency: IdempotencyStore, shares: Shares
    ) -> None:
        self._shares = shares
        self._snapshots = BatchLoader("issue_coupon", database, coupon_store.read_snapshots)
        self._over: dict[str, None] = {}
        """Campaigns that issue no coupons to callers, or none now; in the order of refusals."""
        self.lane: Lane[IssueCoupon, Issued | HasShares] = Lane(
            "issue_coupon", database, _Decider(idempotency), locks, STRATEGIES, translate=_translate
        )

    async def issue(self, command: IssueCoupon) -> Issued:
        """Issue a coupon to the user, or replay it.

        Raises CampaignNotFound, CouponAlreadyIssued, CampaignNotOpen, CampaignQueued,
        CouponSoldOut, RequestIdReused, ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        campaign_id = command.campaign_id
        if not is_id(campaign_id):
            raise CampaignNotFound(campaign_id=campaign_id)
        if campaign_id in self._over:
            _refuse_final(command, await self._snapshots.load(command))
        try:
            issued = await self._decided(command)
        except (CouponSoldOut, CampaignNotOpen, CampaignQueued):
            self._over[campaign_id] = None
            if len(self._over) > OVER_MAX:
                del self._over[next(iter(self._over))]
            raise
        if not issued.replayed:
            # It had not begun when it was refused.
            self._over.pop(campaign_id, None)
        return issued

    async def issue_all(self, commands: Sequence[IssueCoupon]) -> list[Issued | Exception]:
        """The outcome of each command of one campaign by itself, in their order: as of ``issue``.

        A command that is not decided before the running call ends has RequestInProgress. Raises
        Overloaded if the replica stops.
        """
        # No read beforehand looks for final refusals: it would cost about as much as the one batch
        # that it may save.
        if commands and self._shares.knows(commands[0].campaign_id):
            return await self._shares.issue_all(commands)
        outcomes = await self.lane.submit_bulk(commands)
        of_shares = []
        for command, outcome in zip(commands, outcomes, strict=True):
            if isinstance(outcome, HasShares):
                self._shares.learn(command.campaign_id, outcome.shares)
                of_shares.append(command)
        decided = iter(await self._shares.issue_all(of_shares) if of_shares else ())
        return [
            next(decided) if isinstance(outcome, HasShares) else outcome for outcome in outcomes
        ]

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await self.lane.close()
        await self._shares.close()
        await self._snapshots.close()

    async def _decided(self, command: IssueCoupon) -> Issued:
        """The outcome of the lane, or of the shares' if the campaign has shares."""
        if not self._shares.knows(command.campaign_id):
            outcome = await self.lane.submit(command)
            if not isinstance(outcome, HasShares):
                return outcome
            self._shares.learn(command.campaign_id, outcome.shares)
        return await self._shares.issue(command)


def _refuse_final(command: IssueCoupon, snapshot: coupon_store.IssueSnapshot) -> None:
    """Raise the refusal that no later commit changes, if there is one: it needs no lock.

    A call that was answered before is not refused, whatever happened since: the lane replays it.
    """
    if snapshot.record is not None:
        return
    if snapshot.campaign is None:
        raise CampaignNotFound(campaign_id=command.campaign_id)
    snapshot.campaign.check_not_queued()
    if snapshot.coupon is not None:
        replay_or_refuse(command, snapshot.coupon)
    elif snapshot.campaign.state in _FINAL:
        snapshot.campaign.admit(command.user_id)


def _translate(constraint: str, command: IssueCoupon) -> Refusal | None:
    """The refusal for a violated constraint."""
    if constraint == USER_ONCE:
        return CouponAlreadyIssued(campaign_id=command.campaign_id, user_id=command.user_id)
    if constraint == QUEUE_ONLY:
        return CampaignQueued(campaign_id=command.campaign_id)
    if constraint == ISSUED_WITHIN_QUANTITY:
        return CouponSoldOut(campaign_id=command.campaign_id, user_id=command.user_id)
    if constraint == NUMBER_ONCE:
        # Only without the row lock: another batch took this number, but more may be left.
        return ConflictRetriesExhausted(campaign_id=command.campaign_id)
    return None


@dataclass(slots=True)
class _Batch:
    """The locked campaigns of one transaction, and the coupons of its users."""

    campaigns: dict[str, Campaign]
    blocked: frozenset[str]
    coupons: dict[Claim, Coupon] = field(default_factory=dict)
    new: list[Coupon] = field(default_factory=list)


class _Decider(Decider[IssueCoupon, Issued | HasShares, _Batch]):
    async def load(
        self,
        connection: Connection,
        commands: Sequence[IssueCoupon],
        records: AlsoRead,
        *,
        wait_for_locks: bool,
    ) -> _Batch:
        campaign_ids = {command.campaign_id for command in commands}
        locked = await store.lock_campaigns(
            connection, campaign_ids, wait_for_locks=wait_for_locks, also=records
        )
        return _Batch(locked.found, locked.blocked)

    async def load_after_records(
        self, connection: Connection, batch: _Batch, commands: Sequence[IssueCoupon]
    ) -> None:
        batch.coupons = await coupon_store.find_issued(
            connection, {command.claim for command in commands}
        )

    def keys(self, command: IssueCoupon) -> Sequence[RequestKey]:
        return (command.key,)

    def blocked(self, batch: _Batch, command: IssueCoupon) -> RowLocked | None:
        return RowLocked(command.campaign_id) if command.campaign_id in batch.blocked else None

    def decide(
        self, batch: _Batch, records: IdempotencyRecords, command: IssueCoupon
    ) -> Issued | HasShares:
        replayed = records.replay(command, ISSUED_BODY)
        if replayed is not None:
            return replayed
        campaign = batch.campaigns.get(command.campaign_id)
        if campaign is None:
            raise CampaignNotFound(campaign_id=command.campaign_id)
        campaign.check_not_queued()
        if campaign.shares > 1:
            return HasShares(campaign.shares)
        # Before the campaign is checked: COUPON_ALREADY_ISSUED goes before COUPON_SOLD_OUT.
        existing = batch.coupons.get(command.claim)
        if existing is not None:
            records.replays = True
            return replay_or_refuse(command, existing)
        coupon = Coupon.issue(campaign, command, new_id())
        batch.coupons[command.claim] = coupon
        batch.new.append(coupon)
        return records.answer(command, coupon, ISSUED_BODY)

    async def save(
        self, connection: Connection, batch: _Batch, commands: Sequence[IssueCoupon]
    ) -> Saved:
        changed = [batch.campaigns[id_] for id_ in {coupon.campaign_id for coupon in batch.new}]
        return Saved([*store.saving_issued(changed), *coupon_store.adding(batch.new)])
