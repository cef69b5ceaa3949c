"""Using: redeem and restore in one lane, by conditional update; and what a user has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from common.batching.lane import Lane
from common.batching.outcomes import Limits, RowLocked, VersionConflict
from common.db.engines import Database, reading
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.errors import InvalidField, Refusal, RequestIdReused
from common.ids import is_id
from common.locking.locks import NoLocks
from common.money import Money
from common.paging import Page
from common.request_key import RequestKey
from coupon_service.locking import STRATEGIES
from coupon_service.model.coupons import (
    Coupon,
    RedeemCoupon,
    Redemption,
    RestoreCoupon,
    Use,
    coupon_not_found,
    coupon_not_usable,
    redemption_cancelled,
)
from coupon_service.store import coupons, redemptions
from coupon_service.tables import LIVE_REDEMPTION_ONCE, REDEEM_REQUEST_ONCE, answers
from coupon_service.use_cases.pages import cut, place_before


@dataclass(frozen=True, slots=True)
class Used:
    """What a redemption or its restoration did."""

    coupon: Coupon | None
    """None only if there was no such coupon to restore."""
    discount: Money | None = None
    """What a redemption takes off its order."""


@dataclass(frozen=True, slots=True)
class Told:
    """The response of a call."""

    used: Used
    replayed: bool


_BODY: Final = TypeAdapter(Used)


class Using:
    """The use of coupons, seen from one replica."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._answers = IdempotencyStore(answers)
        self.lane: Lane[Use] = Lane(
            "use_coupon",
            database,
            self._decide,
            NoLocks(),
            translate=_translate,
            limits=Limits(rounds_max=STRATEGIES[RedeemCoupon].rounds_max),
        )

    async def use(self, command: Use) -> Told:
        """Redeem or restore, or replay what was done.

        Raises CouponNotFound, CouponNotUsable, CouponExpired, OrderAmountTooSmall,
        CurrencyMismatch, RedemptionCancelled, InvalidField, RequestIdReused,
        ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        told: Told = await self.lane.submit(command)
        return told

    async def get(self, coupon_id: str, user_id: str) -> Coupon:
        """The user's coupon as last committed. Raises CouponNotFound or DatabaseUnavailable."""
        if not is_id(coupon_id):
            raise coupon_not_found(coupon_id, user_id)
        async with reading(self._database) as connection:
            coupon = await coupons.read_one(connection, coupon_id, user_id)
        if coupon is None:
            raise coupon_not_found(coupon_id, user_id)
        return coupon

    async def list_coupons(self, user_id: str, page: Page) -> tuple[list[Coupon], str]:
        """A page of the user's coupons, newest first, and the next page's token ('' at the end)."""
        before = place_before(page)
        async with reading(self._database) as connection:
            found = await coupons.read_page(connection, user_id, before=before, size=page.size + 1)
        return cut(page, found, lambda coupon: (coupon.issue_time, coupon.coupon_id))

    async def _decide(
        self, connection: AsyncConnection, commands: Sequence[Use], *, wait_for_locks: bool
    ) -> list[Any]:
        """One batch: coupons read, then answers, then the model, then what has not moved saved."""
        wanted = {command.coupon_id for command in commands if is_id(command.coupon_id)}
        loaded = await coupons.load(connection, wanted, wait_for_locks=wait_for_locks)
        book = await self._answers.open(
            connection, [key for command in commands for key in _keys(command)]
        )
        # After the answers: a redemption that was answered is found.
        named = {
            (command.user_id, command.redeem_request_id)
            for command in commands
            if isinstance(command, RestoreCoupon)
        }
        batch = _Batch(loaded, book, await redemptions.find(connection, named))
        outcomes: list[Any] = [batch.outcome(command) for command in commands]

        changed = [batch.coupons[id_] for id_ in batch.changed]
        saved = await coupons.save(connection, changed, loaded.coupons)
        lost = batch.changed - saved
        for position, command in enumerate(commands):
            if command.coupon_id in lost:
                # Somebody changed the coupon, or is about to: wait for it apart, with a lock.
                outcomes[position] = RowLocked(command.coupon_id)
                book.forget(_keys(command))
        await redemptions.restore(connection, batch.undone(saved))
        await redemptions.add(connection, batch.added(saved))
        await book.save(connection)
        return outcomes


def _keys(command: Use) -> list[RequestKey]:
    if isinstance(command, RestoreCoupon):
        return [command.key, command.redeem_key]
    return [command.key]


def _translate(constraint: str, command: Use) -> Refusal | None:
    """A violated constraint in the words of the contract."""
    if constraint == LIVE_REDEMPTION_ONCE and isinstance(command, RedeemCoupon):
        return coupon_not_usable(command)
    if constraint == REDEEM_REQUEST_ONCE:
        # The answer is gone after its 30 days; that it happened is known for good.
        return RequestIdReused(request_id=command.request_id)
    return None


class _Batch:
    """The commands of one transaction against the coupons read for them."""

    def __init__(
        self,
        loaded: coupons.Loaded,
        book: IdempotencyRecords,
        found: dict[redemptions.RedemptionId, Redemption],
    ) -> None:
        self.coupons = dict(loaded.coupons)
        self._terms = loaded.terms
        self._book = book
        self._found = found
        self._redemptions = dict(found)
        self.changed: set[str] = set()

    def undone(self, saved: set[str]) -> list[Redemption]:
        """Those that had happened before this batch and were undone in it."""
        return [
            redemption
            for id_, redemption in self._redemptions.items()
            if redemption.coupon_id in saved
            and id_ in self._found
            and redemption is not self._found[id_]
        ]

    def added(self, saved: set[str]) -> list[Redemption]:
        """Those that happened in this batch, undone in it or not."""
        return [
            redemption
            for id_, redemption in self._redemptions.items()
            if redemption.coupon_id in saved and id_ not in self._found
        ]

    def outcome(self, command: Use) -> Told | Refusal | VersionConflict:
        """Decide one command, in order of arrival."""
        try:
            told = self._replay(command)
            if told is None and isinstance(command, RedeemCoupon):
                told = self._redeem(command)
            elif told is None:
                assert isinstance(command, RestoreCoupon)
                told = self._restore(command)
        except Refusal as refusal:
            return refusal
        return told or VersionConflict()

    def _replay(self, command: Use) -> Told | None:
        answer = self._book.get(command.key)
        if answer is None:
            return None
        if answer.cancelled:
            assert isinstance(command, RedeemCoupon)
            raise redemption_cancelled(command)
        return Told(_BODY.validate_json(answer.body_for(command)), replayed=True)

    def _coupon(self, command: Use) -> Coupon | None:
        coupon = self.coupons.get(command.coupon_id)
        return coupon if coupon is not None and coupon.user_id == command.user_id else None

    def _redeem(self, command: RedeemCoupon) -> Told:
        coupon = self._coupon(command)
        if coupon is None:
            raise coupon_not_found(command.coupon_id, command.user_id)
        if (command.user_id, command.request_id) in self._redemptions:
            raise RequestIdReused(request_id=command.request_id)
        used, redemption = coupon.redeem(command, self._terms[coupon.coupon_id])
        self._change(used, redemption)
        return self._answer(command, Used(used, redemption.discount))

    def _restore(self, command: RestoreCoupon) -> Told | None:
        """None: what was read does not fit together, since it changed meanwhile."""
        before = self._book.get(command.redeem_key)
        coupon = self._coupon(command)
        redemption = self._redemptions.get((command.user_id, command.redeem_request_id))
        if redemption is None:
            # Nothing to undo. The cancellation alone keeps the redemption, late, from happening.
            if before is not None and before.cancelled:
                return self._answer(command, Used(coupon), replayed=True)
            self._book.cancel(command.redeem_key)
            return self._answer(command, Used(coupon))
        if redemption.coupon_id != command.coupon_id:
            raise InvalidField("coupon_id", "is not the coupon that redeem_request_id used")
        assert coupon is not None, "a redemption has its coupon"
        if redemption.restore_time is not None:
            # The response of the call that gave it back, whatever became of the coupon since.
            given_back = coupon.unused(redemption.restore_time)
            return self._answer(command, Used(given_back), replayed=True)
        if coupon.redeem_request_id != redemption.request_id:
            return None
        # In the transaction of the undo: the redemption, repeated, is refused.
        self._book.cancel(command.redeem_key)
        self._change(*coupon.restore(command, redemption))
        return self._answer(command, Used(self.coupons[coupon.coupon_id]))

    def _change(self, coupon: Coupon, redemption: Redemption) -> None:
        self.coupons[coupon.coupon_id] = coupon
        self._redemptions[redemption.user_id, redemption.request_id] = redemption
        self.changed.add(coupon.coupon_id)

    def _answer(self, command: Use, used: Used, *, replayed: bool = False) -> Told:
        self._book.answer(command, _BODY.dump_json(used).decode())
        return Told(used, replayed=replayed)
