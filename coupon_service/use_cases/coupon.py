"""Redeems and restores coupons in one lane, and reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pydantic import TypeAdapter

from common.batching.decider import Decider, Saved
from common.batching.lane import Lane
from common.batching.loader import BatchLoader, load_by_id
from common.batching.outcomes import RowLocked, VersionConflict
from common.db.database import Database
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.repeat import read
from common.db.row_locks import AlsoRead
from common.db.statements import Connection
from common.db.writes import execute_together
from common.errors import InvalidField, Refusal, RequestIdReused
from common.ids import is_id
from common.locking.locks import Locks
from common.money import Money
from common.paging import Found, Page, TimePosition
from common.request_key import RequestKey, Result
from coupon_service.errors import CouponNotFound, RedemptionCancelled
from coupon_service.locking import STRATEGIES
from coupon_service.model.campaign import Terms
from coupon_service.model.coupon import (
    Coupon,
    RedeemCoupon,
    Redemption,
    RedemptionId,
    RestoreCoupon,
    coupon_not_usable,
)
from coupon_service.store import coupon as store
from coupon_service.tables import LIVE_REDEMPTION_ONCE, REDEEM_REQUEST_ONCE


@dataclass(frozen=True, slots=True)
class CouponChange:
    """The result of a redemption or a restoration. Stored in the idempotency record."""

    coupon: Coupon | None
    """The coupon after it; None if there was no such coupon to restore."""
    discount: Money | None = None
    """What a redemption takes off its order."""


Command = RedeemCoupon | RestoreCoupon
Changed = Result[CouponChange]

_BODY: Final = TypeAdapter(CouponChange)


class Redemptions:
    """The coupons that users have, as one replica redeems, restores and reads them."""

    def __init__(self, database: Database, locks: Locks, idempotency: IdempotencyStore) -> None:
        self._database = database
        self._found = BatchLoader("coupon", database, store.find_coupons)
        self.lane: Lane[Command, Changed] = Lane(
            "use_coupon", database, _Decider(idempotency), locks, STRATEGIES, translate=_translate
        )

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await self.lane.close()
        await self._found.close()

    async def write(self, command: Command) -> Changed:
        """Redeem or restore the coupon, or replay it.

        Raises CouponNotFound, CouponNotUsable, CouponExpired, CouponWithoutEffect,
        OrderAmountTooSmall, CurrencyMismatch, RedemptionCancelled, InvalidField, RequestIdReused,
        ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        return await self.lane.submit(command)

    async def get_coupon(self, coupon_id: str, user_id: str) -> Coupon:
        """The user's coupon as last committed. Raises CouponNotFound or DatabaseUnavailable."""
        coupon = await load_by_id(self._found, coupon_id)
        if coupon is None or coupon.user_id != user_id:
            raise CouponNotFound(user_id=user_id, coupon_id=coupon_id)
        return coupon

    async def list_coupons(self, user_id: str, page: Page) -> Found[Coupon]:
        """A page of the user's coupons, newest first."""
        found = await read(
            self._database, lambda connection: store.read_coupons(connection, user_id, page)
        )
        return Found(
            page, found, lambda coupon: TimePosition(coupon.issue_time, coupon.coupon_id).key
        )


def _translate(constraint: str, command: Command) -> Refusal | None:
    """The refusal for a violated constraint."""
    if constraint == LIVE_REDEMPTION_ONCE and isinstance(command, RedeemCoupon):
        return coupon_not_usable(command)
    if constraint == REDEEM_REQUEST_ONCE:
        # The record was deleted after 30 days; the redemption stays.
        return RequestIdReused(request_id=command.request_id)
    return None


@dataclass(slots=True)
class _Batch:
    """The coupons and redemptions of one transaction, as its commands change them."""

    loaded: dict[str, Coupon]
    terms: dict[str, Terms]
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


class _Decider(Decider[Command, Changed, _Batch]):
    async def load(
        self,
        connection: Connection,
        commands: Sequence[Command],
        records: AlsoRead,
        *,
        wait_for_locks: bool,
    ) -> _Batch:
        ids = {command.coupon_id for command in commands if is_id(command.coupon_id)}
        loaded, terms = await store.load_coupons(connection, ids, wait_for_locks=wait_for_locks)
        return _Batch(loaded, terms, dict(loaded))

    async def load_after_records(
        self, connection: Connection, batch: _Batch, commands: Sequence[Command]
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
        self, batch: _Batch, records: IdempotencyRecords, command: Command
    ) -> Changed | VersionConflict:
        if isinstance(command, RedeemCoupon) and records.is_cancelled(command.key):
            raise RedemptionCancelled(user_id=command.user_id, request_id=command.request_id)
        replayed = records.replay(command, _BODY)
        if replayed is not None:
            return replayed
        if isinstance(command, RedeemCoupon):
            return records.answer(command, _redeem(batch, command), _BODY)
        result = _restore(batch, records, command)
        if isinstance(result, Result):
            records.answer(command, result.value, _BODY)
        return result

    async def save(
        self, connection: Connection, batch: _Batch, commands: Sequence[Command]
    ) -> Saved:
        changed = [batch.coupons[id_] for id_ in batch.changed]
        saved = await store.save_coupons(connection, changed, batch.loaded)
        of_saved = [one for one in batch.redemptions.values() if one.coupon_id in saved]
        known = batch.found
        restored = [one for one in of_saved if one.id in known and one != known[one.id]]
        added = [one for one in of_saved if one.id not in known]
        # Another transaction changed or locked the others: decide them again with a row lock.
        lost = batch.changed - saved
        conflicts = {
            position: RowLocked(command.coupon_id)
            for position, command in enumerate(commands)
            if command.coupon_id in lost
        }
        rest = store.restoring_redemptions(restored)
        if rest and added:
            # First: another command of the batch may have redeemed the restored coupon again.
            await execute_together(connection, rest)
            rest = []
        return Saved([*rest, *store.adding_redemptions(added)], conflicts)


def _redeem(batch: _Batch, command: RedeemCoupon) -> CouponChange:
    coupon = batch.coupon_of(command)
    if coupon is None:
        raise CouponNotFound(user_id=command.user_id, coupon_id=command.coupon_id)
    if command.redemption_id in batch.redemptions:
        raise RequestIdReused(request_id=command.request_id)
    redeemed, redemption = coupon.redeem(command, batch.terms[coupon.coupon_id])
    batch.change(redeemed, redemption)
    return CouponChange(redeemed, redemption.discount)


def _restore(
    batch: _Batch, records: IdempotencyRecords, command: RestoreCoupon
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
