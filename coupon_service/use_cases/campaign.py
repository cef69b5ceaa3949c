"""Creates campaigns in one lane, issues their coupons in another, and reads campaigns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter

from common.batching.decider import Decider
from common.batching.lane import Lane
from common.batching.loader import BatchLoader, load_by_id
from common.batching.outcomes import RowLocked, VersionConflict
from common.db.database import Database
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.repeat import read
from common.db.row_locks import read_clock
from common.db.statements import Connection
from common.errors import ConflictRetriesExhausted, Refusal, RequestIdReused
from common.ids import is_id, new_id
from common.locking.locks import Locks
from common.paging import Found, Page, TimePosition
from common.request_key import RequestKey, Result
from coupon_service.errors import (
    CampaignNotFound,
    CampaignNotOpen,
    CampaignQueued,
    CouponAlreadyIssued,
    CouponSoldOut,
)
from coupon_service.locking import STRATEGIES
from coupon_service.model.campaign import Campaign, CampaignState, CreateCampaign
from coupon_service.model.coupon import Claim, Coupon, IssueCoupon
from coupon_service.model.share import split
from coupon_service.store import campaign as store
from coupon_service.store import coupon as coupon_store
from coupon_service.store import share as share_store
from coupon_service.tables import (
    CAMPAIGN_REQUEST_ONCE,
    ISSUED_WITHIN_QUANTITY,
    NUMBER_ONCE,
    QUEUE_ONLY,
    USER_ONCE,
)
from coupon_service.use_cases.issue import ISSUED_BODY, HasShares, Issued, replay_or_refuse
from coupon_service.use_cases.share import Shares

Created = Result[Campaign]

_BODY: Final = TypeAdapter(Campaign)


class Campaigns:
    """All campaigns, as one replica creates and reads them."""

    def __init__(self, database: Database, locks: Locks, idempotency: IdempotencyStore) -> None:
        self._database = database
        self._found = BatchLoader("campaign", database, store.find_campaigns)
        self.lane: Lane[CreateCampaign, Created] = Lane(
            "create_campaign",
            database,
            _Decider(idempotency),
            locks,
            STRATEGIES,
            translate=_translate,
        )

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await self.lane.close()
        await self._found.close()

    async def create(self, command: CreateCampaign) -> Created:
        """Create the campaign, or replay it.

        Raises InvalidField, RequestIdReused, ConflictRetriesExhausted, DatabaseUnavailable or
        Overloaded.
        """
        return await self.lane.submit(command)

    async def get_campaign(self, campaign_id: str) -> Campaign:
        """The campaign as last committed. Raises CampaignNotFound or DatabaseUnavailable."""
        campaign = await load_by_id(self._found, campaign_id)
        if campaign is None:
            raise CampaignNotFound(campaign_id=campaign_id)
        return campaign

    async def get_unqueued(self, campaign_id: str) -> Campaign:
        """As ``get_campaign``. Raises CampaignQueued if it issues coupons only by ticket."""
        campaign = await self.get_campaign(campaign_id)
        campaign.check_not_queued()
        return campaign

    async def list_campaigns(self, page: Page) -> Found[Campaign]:
        """A page of all campaigns, newest first."""
        found = await read(
            self._database, lambda connection: store.read_campaigns(connection, page)
        )
        return Found(
            page,
            found,
            lambda campaign: TimePosition(campaign.create_time, campaign.campaign_id).key,
        )


def _translate(constraint: str, command: CreateCampaign) -> Refusal | None:
    """The refusal for a violated constraint."""
    if constraint == CAMPAIGN_REQUEST_ONCE:
        # The record was deleted after 30 days; the campaign stays.
        return RequestIdReused(request_id=command.request_id)
    return None


@dataclass(frozen=True, slots=True)
class _Batch:
    """The campaigns that one transaction creates, each with its request_id."""

    now: datetime
    created: list[tuple[Campaign, str]] = field(default_factory=list)


class _Decider(Decider[CreateCampaign, Created, _Batch]):
    async def load(
        self,
        connection: Connection,
        commands: Sequence[CreateCampaign],
        *,
        wait_for_locks: bool,
    ) -> _Batch:
        # A new row depends on no other row.
        return _Batch(await read_clock(connection))

    def keys(self, command: CreateCampaign) -> Sequence[RequestKey]:
        return (command.key,)

    def decide(
        self, batch: _Batch, records: IdempotencyRecords, command: CreateCampaign
    ) -> Created:
        replayed = records.replay(command, _BODY)
        if replayed is not None:
            return replayed
        campaign = Campaign.create(command, new_id(), batch.now)
        batch.created.append((campaign, command.request_id))
        return records.answer(command, campaign, _BODY)

    async def save(
        self, connection: Connection, batch: _Batch, commands: Sequence[CreateCampaign]
    ) -> dict[int, VersionConflict]:
        await store.add_campaigns(connection, batch.created)
        shares = [share for campaign, _ in batch.created for share in split(campaign)]
        await share_store.add_shares(connection, shares)
        return {}


# -- issuance ------------------------------------------------------------------------------------

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
            "issue_coupon",
            database,
            _IssueDecider(idempotency),
            locks,
            STRATEGIES,
            translate=_translate_issue,
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


def _translate_issue(constraint: str, command: IssueCoupon) -> Refusal | None:
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
class _IssueBatch:
    """The locked campaigns of one transaction, and the coupons of its users."""

    campaigns: dict[str, Campaign]
    blocked: frozenset[str]
    coupons: dict[Claim, Coupon] = field(default_factory=dict)
    new: list[Coupon] = field(default_factory=list)


class _IssueDecider(Decider[IssueCoupon, Issued | HasShares, _IssueBatch]):
    async def load(
        self, connection: Connection, commands: Sequence[IssueCoupon], *, wait_for_locks: bool
    ) -> _IssueBatch:
        campaign_ids = {command.campaign_id for command in commands}
        locked = await store.lock_campaigns(connection, campaign_ids, wait_for_locks=wait_for_locks)
        return _IssueBatch(locked.found, locked.blocked)

    async def load_after_records(
        self, connection: Connection, batch: _IssueBatch, commands: Sequence[IssueCoupon]
    ) -> None:
        batch.coupons = await coupon_store.find_issued(
            connection, {command.claim for command in commands}
        )

    def keys(self, command: IssueCoupon) -> Sequence[RequestKey]:
        return (command.key,)

    def blocked(self, batch: _IssueBatch, command: IssueCoupon) -> RowLocked | None:
        return RowLocked(command.campaign_id) if command.campaign_id in batch.blocked else None

    def decide(
        self, batch: _IssueBatch, records: IdempotencyRecords, command: IssueCoupon
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
        self, connection: Connection, batch: _IssueBatch, commands: Sequence[IssueCoupon]
    ) -> dict[int, RowLocked]:
        changed = {coupon.campaign_id for coupon in batch.new}
        await store.save_issued(connection, [batch.campaigns[id_] for id_ in changed])
        await coupon_store.add_coupons(connection, batch.new)
        return {}  # the rows are locked: no write is lost
