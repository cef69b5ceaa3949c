"""Issues coupons in one lane, redeems and restores them in another, and reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from common.batching.decider import Decider
from common.batching.lane import Lane
from common.batching.loader import BatchLoader
from common.batching.outcomes import RowLocked, VersionConflict
from common.db.engines import Database, read_by_id, reading
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.errors import ConflictRetriesExhausted, InvalidField, Refusal, RequestIdReused
from common.ids import is_id, new_id
from common.locking.locks import Locks
from common.money import Money
from common.paging import Page, TimePosition
from common.request_key import RequestKey, Result
from coupon_service.errors import (
    CampaignNotFound,
    CouponAlreadyIssued,
    CouponNotFound,
    CouponSoldOut,
    RedemptionCancelled,
)
from coupon_service.locking import STRATEGIES
from coupon_service.model.campaign import Campaign, CampaignState
from coupon_service.model.coupon import (
    Claim,
    Coupon,
    IssueCoupon,
    RedeemCoupon,
    Redemption,
    RedemptionId,
    RestoreCoupon,
    coupon_not_usable,
)
from coupon_service.store import campaign as campaign_store
from coupon_service.store import coupon as store
from coupon_service.tables import (
    ISSUED_WITHIN_QUANTITY,
    LIVE_REDEMPTION_ONCE,
    NUMBER_ONCE,
    REDEEM_REQUEST_ONCE,
    USER_ONCE,
)

# -- issuance ------------------------------------------------------------------------------------

Issued = Result[Coupon]

_ISSUED_BODY: Final = TypeAdapter(Coupon)
_FINAL: Final = (CampaignState.SOLD_OUT, CampaignState.ENDED)


class Issuance:
    """Issues coupons in one replica.

    A read without a lock answers most calls; the lane has those that may get a coupon.
    """

    def __init__(self, database: Database, locks: Locks, idempotency: IdempotencyStore) -> None:
        self._snapshots = BatchLoader(database, store.read_snapshots)
        self.lane: Lane[IssueCoupon, Issued] = Lane(
            "issue_coupon",
            database,
            _IssueDecider(idempotency),
            locks,
            STRATEGIES,
            translate=_translate_issue,
        )

    async def issue(self, command: IssueCoupon) -> Issued:
        """Issue a coupon to the user, or replay it.

        Raises CampaignNotFound, CouponAlreadyIssued, CampaignNotOpen, CouponSoldOut,
        RequestIdReused, ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        final = _final_outcome(command, await self._snapshots.load(command))
        return final or await self.lane.submit(command)

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await self.lane.close()
        await self._snapshots.close()


def _final_outcome(command: IssueCoupon, snapshot: store.IssueSnapshot) -> Issued | None:
    """The outcome that no later commit changes, if there is one: it needs no lock.

    The record comes first: a repeated call gets its coupon again, whatever happened since.
    """
    if snapshot.record is not None:
        body = snapshot.record.body_for(command)
        return Result(_ISSUED_BODY.validate_json(body), replayed=True)
    if snapshot.campaign is None:
        raise CampaignNotFound(campaign_id=command.campaign_id)
    if snapshot.coupon is not None:
        return _replay_or_refuse(command, snapshot.coupon)
    if snapshot.campaign.state in _FINAL:
        snapshot.campaign.admit(command.user_id)
    return None


def _replay_or_refuse(command: IssueCoupon, coupon: Coupon) -> Issued:
    """The outcome for a user who has the coupon; the command's record may have been deleted."""
    if coupon.request_id != command.request_id:
        raise CouponAlreadyIssued(
            campaign_id=coupon.campaign_id, user_id=coupon.user_id, coupon_id=coupon.coupon_id
        )
    return Result(coupon.unused(coupon.issue_time), replayed=True)


def _translate_issue(constraint: str, command: IssueCoupon) -> Refusal | None:
    """The refusal for a violated constraint."""
    if constraint == USER_ONCE:
        return CouponAlreadyIssued(campaign_id=command.campaign_id, user_id=command.user_id)
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


class _IssueDecider(Decider[IssueCoupon, Issued, _IssueBatch]):
    async def load(
        self, connection: AsyncConnection, commands: Sequence[IssueCoupon], *, wait_for_locks: bool
    ) -> _IssueBatch:
        campaign_ids = {command.campaign_id for command in commands}
        locked = await campaign_store.lock_campaigns(
            connection, campaign_ids, wait_for_locks=wait_for_locks
        )
        return _IssueBatch(locked.found, locked.blocked)

    async def load_after_records(
        self, connection: AsyncConnection, batch: _IssueBatch, commands: Sequence[IssueCoupon]
    ) -> None:
        batch.coupons = await store.find_issued(connection, {command.claim for command in commands})

    def keys(self, command: IssueCoupon) -> Sequence[RequestKey]:
        return (command.key,)

    def blocked(self, batch: _IssueBatch, command: IssueCoupon) -> RowLocked | None:
        return RowLocked(command.campaign_id) if command.campaign_id in batch.blocked else None

    def decide(
        self, batch: _IssueBatch, records: IdempotencyRecords, command: IssueCoupon
    ) -> Issued:
        replayed = records.replay(command, _ISSUED_BODY)
        if replayed is not None:
            return replayed
        campaign = batch.campaigns.get(command.campaign_id)
        if campaign is None:
            raise CampaignNotFound(campaign_id=command.campaign_id)
        # Before the campaign is checked: COUPON_ALREADY_ISSUED goes before COUPON_SOLD_OUT.
        existing = batch.coupons.get(command.claim)
        if existing is not None:
            return _replay_or_refuse(command, existing)
        coupon = Coupon.issue(campaign, command, new_id())
        batch.coupons[command.claim] = coupon
        batch.new.append(coupon)
        return records.answer(command, coupon, _ISSUED_BODY)

    async def save(
        self, connection: AsyncConnection, batch: _IssueBatch, commands: Sequence[IssueCoupon]
    ) -> dict[int, RowLocked]:
        changed = {coupon.campaign_id for coupon in batch.new}
        await campaign_store.save_issued(connection, [batch.campaigns[id_] for id_ in changed])
        await store.add_coupons(connection, batch.new)
        return {}  # the rows are locked: no write is lost


# -- redemptions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CouponChange:
    """The result of a redemption or a restoration. Stored in the idempotency record."""

    coupon: Coupon | None
    """The coupon after it; None if there was no such coupon to restore."""
    discount: Money | None = None
    """What a redemption takes off its order."""


Command = RedeemCoupon | RestoreCoupon
Changed = Result[CouponChange]

_CHANGED_BODY: Final = TypeAdapter(CouponChange)


class Redemptions:
    """The coupons that users have, as one replica redeems, restores and reads them."""

    def __init__(self, database: Database, locks: Locks, idempotency: IdempotencyStore) -> None:
        self._database = database
        self.lane: Lane[Command, Changed] = Lane(
            "use_coupon",
            database,
            _RedemptionDecider(idempotency),
            locks,
            STRATEGIES,
            translate=_translate_redemption,
        )

    async def write(self, command: Command) -> Changed:
        """Redeem or restore the coupon, or replay it.

        Raises CouponNotFound, CouponNotUsable, CouponExpired, OrderAmountTooSmall,
        CurrencyMismatch, RedemptionCancelled, InvalidField, RequestIdReused,
        ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        return await self.lane.submit(command)

    async def get_coupon(self, coupon_id: str, user_id: str) -> Coupon:
        """The user's coupon as last committed. Raises CouponNotFound or DatabaseUnavailable."""
        read = partial(store.read_coupon, user_id=user_id)
        coupon = await read_by_id(self._database, coupon_id, read)
        if coupon is None:
            raise CouponNotFound(user_id=user_id, coupon_id=coupon_id)
        return coupon

    async def list_coupons(self, user_id: str, page: Page) -> tuple[list[Coupon], str]:
        """A page of the user's coupons, newest first, and the next page's token ('' at the end)."""
        async with reading(self._database) as connection:
            found = await store.read_coupons(connection, user_id, page)
        return page.cut(found, lambda coupon: TimePosition(coupon.issue_time, coupon.coupon_id).key)


def _translate_redemption(constraint: str, command: Command) -> Refusal | None:
    """The refusal for a violated constraint."""
    if constraint == LIVE_REDEMPTION_ONCE and isinstance(command, RedeemCoupon):
        return coupon_not_usable(command)
    if constraint == REDEEM_REQUEST_ONCE:
        # The record was deleted after 30 days; the redemption stays.
        return RequestIdReused(request_id=command.request_id)
    return None


@dataclass(slots=True)
class _RedemptionBatch:
    """The coupons and redemptions of one transaction, as its commands change them."""

    loaded: store.LoadedCoupons
    coupons: dict[str, Coupon]
    found: dict[RedemptionId, Redemption] = field(default_factory=dict)
    redemptions: dict[RedemptionId, Redemption] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)

    def coupon_of(self, command: Command) -> Coupon | None:
        """The command's coupon, if it is the user's."""
        coupon = self.coupons.get(command.coupon_id)
        return coupon if coupon is not None and coupon.user_id == command.user_id else None

    def change(self, coupon: Coupon, redemption: Redemption) -> None:
        self.coupons[coupon.coupon_id] = coupon
        self.redemptions[redemption.id] = redemption
        self.changed.add(coupon.coupon_id)


class _RedemptionDecider(Decider[Command, Changed, _RedemptionBatch]):
    async def load(
        self, connection: AsyncConnection, commands: Sequence[Command], *, wait_for_locks: bool
    ) -> _RedemptionBatch:
        wanted = {command.coupon_id for command in commands if is_id(command.coupon_id)}
        loaded = await store.load_coupons(connection, wanted, wait_for_locks=wait_for_locks)
        return _RedemptionBatch(loaded, dict(loaded.coupons))

    async def load_after_records(
        self, connection: AsyncConnection, batch: _RedemptionBatch, commands: Sequence[Command]
    ) -> None:
        """Find the redemptions to restore. One that has a record is always found."""
        named = {
            command.redemption_id for command in commands if isinstance(command, RestoreCoupon)
        }
        batch.found = await store.find_redemptions(connection, named)
        batch.redemptions = dict(batch.found)

    def keys(self, command: Command) -> Sequence[RequestKey]:
        if isinstance(command, RestoreCoupon):
            return command.key, command.redemption_id.key
        return (command.key,)

    def decide(
        self, batch: _RedemptionBatch, records: IdempotencyRecords, command: Command
    ) -> Changed | VersionConflict:
        if isinstance(command, RedeemCoupon) and records.is_cancelled(command.key):
            raise RedemptionCancelled(user_id=command.user_id, request_id=command.request_id)
        replayed = records.replay(command, _CHANGED_BODY)
        if replayed is not None:
            return replayed
        if isinstance(command, RedeemCoupon):
            return records.answer(command, _redeem(batch, command), _CHANGED_BODY)
        result = _restore(batch, records, command)
        if isinstance(result, Result):
            records.answer(command, result.value, _CHANGED_BODY)
        return result

    async def save(
        self, connection: AsyncConnection, batch: _RedemptionBatch, commands: Sequence[Command]
    ) -> dict[int, RowLocked]:
        changed = [batch.coupons[id_] for id_ in batch.changed]
        saved = await store.save_coupons(connection, changed, batch.loaded.coupons)
        of_saved = [one for one in batch.redemptions.values() if one.coupon_id in saved]
        await store.restore_redemptions(
            connection,
            [one for one in of_saved if one.id in batch.found and one != batch.found[one.id]],
        )
        await store.add_redemptions(
            connection, [one for one in of_saved if one.id not in batch.found]
        )
        # Another transaction changed or locked the others: decide them again with a row lock.
        lost = batch.changed - saved
        return {
            position: RowLocked(command.coupon_id)
            for position, command in enumerate(commands)
            if command.coupon_id in lost
        }


def _redeem(batch: _RedemptionBatch, command: RedeemCoupon) -> CouponChange:
    coupon = batch.coupon_of(command)
    if coupon is None:
        raise CouponNotFound(user_id=command.user_id, coupon_id=command.coupon_id)
    if command.redemption_id in batch.redemptions:
        raise RequestIdReused(request_id=command.request_id)
    redeemed, redemption = coupon.redeem(command, batch.loaded.terms[coupon.coupon_id])
    batch.change(redeemed, redemption)
    return CouponChange(redeemed, redemption.discount)


def _restore(
    batch: _RedemptionBatch, records: IdempotencyRecords, command: RestoreCoupon
) -> Changed | VersionConflict:
    """The restored coupon, and whether the redemption had been restored or cancelled before.

    VersionConflict: coupon and redemption were read at different times and do not fit together.
    """
    redeem_key = command.redemption_id.key
    coupon = batch.coupon_of(command)
    redemption = batch.redemptions.get(command.redemption_id)
    if redemption is None:
        if records.is_cancelled(redeem_key):
            return Result(CouponChange(coupon), replayed=True)
        # Nothing to undo: the tombstone alone refuses the redemption when it arrives.
        records.cancel(redeem_key)
        return Result(CouponChange(coupon))
    if redemption.coupon_id != command.coupon_id:
        raise InvalidField("coupon_id", "is not the coupon that redeem_request_id used")
    assert coupon is not None, "a redemption has its coupon"
    if redemption.restore_time is not None:
        # The coupon as its restoration returned it, whatever happened to it since.
        return Result(CouponChange(coupon.unused(redemption.restore_time)), replayed=True)
    if coupon.redeem_request_id != redemption.request_id:
        return VersionConflict()
    # In the transaction of the restoration: the redemption, repeated, is refused.
    records.cancel(redeem_key)
    restored, ended = coupon.restore(command, redemption)
    batch.change(restored, ended)
    return Result(CouponChange(restored))
