"""Issuing: a look without a lock that ends most calls, and a lane for those who may get one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from common.batching.lane import Lane
from common.batching.loader import BatchLoader
from common.batching.outcomes import RowLocked
from common.db.engines import Database
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.errors import ConflictRetriesExhausted, Refusal
from common.ids import new_id
from common.locking.locks import Locks
from coupon_service.errors import CouponAlreadyIssued, CouponSoldOut
from coupon_service.locking import issue_key
from coupon_service.model.campaigns import (
    CampaignState,
    IssueCoupon,
    already_issued,
    campaign_not_found,
)
from coupon_service.model.coupons import Coupon
from coupon_service.store import campaigns, coupons
from coupon_service.store.glances import Glance, glance
from coupon_service.tables import ISSUED_WITHIN_QUANTITY, NUMBER_ONCE, USER_ONCE, answers

_BODY: Final = TypeAdapter(Coupon)
_FINAL: Final = (CampaignState.SOLD_OUT, CampaignState.ENDED)


@dataclass(frozen=True, slots=True)
class Issued:
    """A coupon as it was issued."""

    coupon: Coupon
    replayed: bool


class Issuing:
    """The giving out of coupons, seen from one replica."""

    def __init__(self, database: Database, locks: Locks) -> None:
        self._answers = IdempotencyStore(answers)
        self._glances: BatchLoader[IssueCoupon, Glance] = BatchLoader(database, glance)
        self.lane: Lane[IssueCoupon] = Lane(
            "issue_coupon",
            database,
            self._decide,
            locks,
            lock_key=issue_key,
            translate=_translate,
        )

    async def issue(self, command: IssueCoupon) -> Issued:
        """Give the user a coupon, or replay that it was given.

        Raises CampaignNotFound, CouponAlreadyIssued, CampaignNotOpen, CouponSoldOut,
        RequestIdReused, ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        known = _known(command, await self._glances.get(command))
        if known is not None:
            return known
        issued: Issued = await self.lane.submit(command)
        return issued

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await self.lane.close()
        await self._glances.close()

    async def _decide(
        self, connection: AsyncConnection, commands: Sequence[IssueCoupon], *, wait_for_locks: bool
    ) -> list[Any]:
        """One batch: campaigns locked, then answers, then the model, then everything saved."""
        wanted = {command.campaign_id for command in commands}
        loaded = await campaigns.lock(connection, wanted, wait_for_locks=wait_for_locks)
        book = await self._answers.open(connection, [command.key for command in commands])
        claims = {(command.campaign_id, command.user_id) for command in commands}
        batch = _Batch(loaded, book, await coupons.find_issued(connection, claims))
        outcomes = [batch.outcome(command) for command in commands]
        changed = {coupon.campaign_id for coupon in batch.new}
        await campaigns.save_issued(connection, [loaded.campaigns[id_] for id_ in changed])
        await coupons.add(connection, batch.new)
        await book.save(connection)
        return outcomes


def _known(command: IssueCoupon, seen: Glance) -> Issued | None:
    """What needs no lock, since it stays as it is: a first answer, a coupon, an end.

    A repetition of the call that got the coupon is told of it again; that comes first.
    """
    if seen.answer is not None:
        return Issued(_BODY.validate_json(seen.answer.body_for(command)), replayed=True)
    if seen.campaign is None:
        raise campaign_not_found(command.campaign_id)
    if seen.coupon is not None:
        return _again(command, seen.coupon)
    if seen.campaign.state in _FINAL:
        seen.campaign.admit(command)
    return None


def _again(command: IssueCoupon, coupon: Coupon) -> Issued:
    """To a user who has one: the same request's answer, though its row is gone, or a refusal."""
    if coupon.request_id != command.request_id:
        raise already_issued(coupon)
    return Issued(coupon.unused(coupon.issue_time), replayed=True)


def _translate(constraint: str, command: IssueCoupon) -> Refusal | None:
    """A violated constraint in the words of the contract."""
    if constraint == USER_ONCE:
        return CouponAlreadyIssued(campaign_id=command.campaign_id, user_id=command.user_id)
    if constraint == ISSUED_WITHIN_QUANTITY:
        return CouponSoldOut(campaign_id=command.campaign_id, user_id=command.user_id)
    if constraint == NUMBER_ONCE:
        # Only without the row lock: somebody else took this number, another may be left.
        return ConflictRetriesExhausted(campaign_id=command.campaign_id)
    return None


class _Batch:
    """The commands of one transaction against the campaigns locked for them."""

    def __init__(
        self,
        loaded: campaigns.Loaded,
        book: IdempotencyRecords,
        issued: dict[coupons.Claim, Coupon],
    ) -> None:
        self._loaded = loaded
        self._book = book
        self._issued = issued
        self.new: list[Coupon] = []

    def outcome(self, command: IssueCoupon) -> Issued | Refusal | RowLocked:
        """Decide one command, in order of arrival."""
        if command.campaign_id in self._loaded.held:
            return RowLocked(command.campaign_id)
        try:
            return self._replay(command) or self._issue(command)
        except Refusal as refusal:
            return refusal

    def _replay(self, command: IssueCoupon) -> Issued | None:
        answer = self._book.get(command.key)
        if answer is None:
            return None
        return Issued(_BODY.validate_json(answer.body_for(command)), replayed=True)

    def _issue(self, command: IssueCoupon) -> Issued:
        campaign = self._loaded.campaigns.get(command.campaign_id)
        if campaign is None:
            raise campaign_not_found(command.campaign_id)
        claim = (command.campaign_id, command.user_id)
        before = self._issued.get(claim)
        if before is not None:
            return _again(command, before)
        coupon = campaign.issue(command, new_id())
        self._issued[claim] = coupon
        self.new.append(coupon)
        self._book.answer(command, _BODY.dump_json(coupon).decode())
        return Issued(coupon, replayed=False)
