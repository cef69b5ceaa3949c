"""Coupons, each used by one order at a time, and their redemptions, each undone at most once."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime

from common.ids import is_id
from common.money import Money
from common.request_key import RequestKey, digest_of
from coupon_service.errors import (
    CouponExpired,
    CouponNotFound,
    CouponNotUsable,
    RedemptionCancelled,
)
from coupon_service.model.terms import Terms


class CouponState(enum.StrEnum):
    """Where a coupon stands at a time."""

    ISSUED = "ISSUED"
    REDEEMED = "REDEEMED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class RedeemCoupon:
    """Use the coupon for an order."""

    coupon_id: str
    user_id: str
    order_id: str
    order_amount: Money
    request_id: str

    @property
    def key(self) -> RequestKey:
        return redeem_key(self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(
            self.coupon_id,
            self.order_id,
            self.order_amount.currency_code,
            self.order_amount.amount_minor,
        )


@dataclass(frozen=True, slots=True)
class RestoreCoupon:
    """Undo a redemption, once, or keep it from ever happening."""

    coupon_id: str
    user_id: str
    redeem_request_id: str
    request_id: str

    @property
    def key(self) -> RequestKey:
        return RequestKey("RestoreCoupon", self.user_id, self.request_id)

    @property
    def redeem_key(self) -> RequestKey:
        return redeem_key(self.user_id, self.redeem_request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.coupon_id, self.redeem_request_id)


Use = RedeemCoupon | RestoreCoupon


def redeem_key(user_id: str, request_id: str) -> RequestKey:
    """Under which a redemption is answered, or cancelled by its restoration."""
    return RequestKey("RedeemCoupon", user_id, request_id)


@dataclass(frozen=True, slots=True)
class Redemption:
    """One use of a coupon by an order, for good; live until it is restored."""

    user_id: str
    request_id: str
    coupon_id: str
    order_id: str
    order_amount: Money
    discount: Money
    redeem_time: datetime
    restore_request_id: str | None = None
    restore_time: datetime | None = None

    @property
    def live(self) -> bool:
        return self.restore_time is None


@dataclass(frozen=True, slots=True)
class Coupon:
    """A coupon as it stood at ``as_of``, by the database's clock."""

    coupon_id: str
    campaign_id: str
    user_id: str
    issue_number: int
    request_id: str
    """The request that it was issued to."""
    issue_time: datetime
    expire_time: datetime
    as_of: datetime
    redeem_request_id: str | None = None
    order_id: str | None = None
    redeem_time: datetime | None = None

    @property
    def state(self) -> CouponState:
        """Expiry is a matter of the clock, not of a row: nobody has to come and write it down."""
        if self.redeem_request_id is not None:
            return CouponState.REDEEMED
        return CouponState.EXPIRED if self.as_of >= self.expire_time else CouponState.ISSUED

    def unused(self, as_of: datetime) -> Coupon:
        """The coupon at that time, without a redemption."""
        return replace(self, as_of=as_of, redeem_request_id=None, order_id=None, redeem_time=None)

    def redeem(self, command: RedeemCoupon, terms: Terms) -> tuple[Coupon, Redemption]:
        """Use it now. Raises CouponNotUsable, CouponExpired, or as ``Terms.discount``."""
        if self.state is CouponState.REDEEMED:
            raise coupon_not_usable(command)
        if self.state is CouponState.EXPIRED:
            raise CouponExpired(coupon_id=self.coupon_id, expire_time=self.expire_time.isoformat())
        used = replace(
            self,
            redeem_request_id=command.request_id,
            order_id=command.order_id,
            redeem_time=self.as_of,
        )
        return used, Redemption(
            self.user_id,
            command.request_id,
            self.coupon_id,
            command.order_id,
            command.order_amount,
            terms.discount(command.order_amount),
            self.as_of,
        )

    def restore(self, command: RestoreCoupon, redemption: Redemption) -> tuple[Coupon, Redemption]:
        """Give it back now. An expired one too: a use that is undone must not look used."""
        assert redemption.live
        assert self.redeem_request_id == redemption.request_id == command.redeem_request_id
        undone = replace(redemption, restore_request_id=command.request_id, restore_time=self.as_of)
        return self.unused(self.as_of), undone


def coupon_not_found(coupon_id: str, user_id: str) -> CouponNotFound:
    # What could not be an id is not told back: it may be long, or not be text at all.
    named = {"coupon_id": coupon_id} if is_id(coupon_id) else {}
    return CouponNotFound(user_id=user_id, **named)


def coupon_not_usable(command: RedeemCoupon) -> CouponNotUsable:
    return CouponNotUsable(coupon_id=command.coupon_id, user_id=command.user_id)


def redemption_cancelled(command: RedeemCoupon) -> RedemptionCancelled:
    return RedemptionCancelled(user_id=command.user_id, request_id=command.request_id)
