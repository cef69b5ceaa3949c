"""Coupons, each redeemed by one order at a time, and redemptions, each restored at most once."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from common.identity.origin import Origin
from common.money import Money
from common.request_key import RequestKey, digest_of
from coupon_service.errors import CouponExpired, CouponNotUsable, CouponWithoutEffect
from coupon_service.model.campaign import Campaign, Terms


class Claim(NamedTuple):
    """A user's claim to a campaign's coupon; there is at most one coupon for it."""

    campaign_id: str
    user_id: str


class RedemptionId(NamedTuple):
    """A redemption, by its user and the request_id of its RedeemCoupon."""

    user_id: str
    request_id: str

    @property
    def key(self) -> RequestKey:
        """The key of the redemption's record, which a restoration replaces by a tombstone."""
        return RequestKey("RedeemCoupon", self.user_id, self.request_id)


class CouponState(enum.StrEnum):
    """The state of a coupon at a time."""

    ISSUED = "ISSUED"
    REDEEMED = "REDEEMED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class IssueCoupon:
    """Issue one coupon of the campaign to the user, if any are left."""

    campaign_id: str
    user_id: str
    request_id: str

    @property
    def claim(self) -> Claim:
        return Claim(self.campaign_id, self.user_id)

    @property
    def key(self) -> RequestKey:
        return RequestKey("IssueCoupon", self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.campaign_id)


@dataclass(frozen=True, slots=True)
class RedeemCoupon:
    """Use the coupon for an order."""

    coupon_id: str
    user_id: str
    order_id: str
    order_amount: Money
    request_id: str
    origin: Origin = Origin.UNVERIFIED
    """Not part of the request's content."""

    @property
    def redemption_id(self) -> RedemptionId:
        return RedemptionId(self.user_id, self.request_id)

    @property
    def key(self) -> RequestKey:
        return self.redemption_id.key

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
    """Undo a redemption once, or prevent it if it has not happened."""

    coupon_id: str
    user_id: str
    redeem_request_id: str
    request_id: str

    @property
    def redemption_id(self) -> RedemptionId:
        return RedemptionId(self.user_id, self.redeem_request_id)

    @property
    def key(self) -> RequestKey:
        return RequestKey("RestoreCoupon", self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.coupon_id, self.redeem_request_id)


@dataclass(frozen=True, slots=True)
class Redemption:
    """One use of a coupon by an order. It is never deleted; it is live until it is restored."""

    user_id: str
    request_id: str
    coupon_id: str
    order_id: str
    currency_code: str
    order_amount_minor: int
    discount_minor: int
    redeem_time: datetime
    restore_request_id: str | None = None
    restore_time: datetime | None = None
    origin: Origin | None = None
    """None if an earlier release stored it."""

    @property
    def id(self) -> RedemptionId:
        return RedemptionId(self.user_id, self.request_id)

    @property
    def discount(self) -> Money:
        return Money(self.currency_code, self.discount_minor)

    @property
    def live(self) -> bool:
        return self.restore_time is None


@dataclass(frozen=True, slots=True)
class Coupon:
    """A coupon at the time ``as_of`` of the database's clock."""

    coupon_id: str
    campaign_id: str
    user_id: str
    issue_number: int
    request_id: str
    """The request_id of the IssueCoupon or QueueCoupon that it was issued by."""
    issue_time: datetime
    expire_time: datetime
    as_of: datetime
    redeem_request_id: str | None = None
    order_id: str | None = None
    redeem_time: datetime | None = None
    ticket_id: str | None = None
    """The ticket that it was issued by; None: by IssueCoupon. Answers of an earlier release do not
    have it."""

    @classmethod
    def issue(cls, campaign: Campaign, command: IssueCoupon, coupon_id: str) -> Coupon:
        """The campaign's next coupon. Raises CampaignNotOpen or CouponSoldOut.

        The caller has checked that the user has no coupon of the campaign.
        """
        number = campaign.take_number(command.user_id)
        return cls.numbered(campaign, command, coupon_id, number)

    @classmethod
    def numbered(
        cls, campaign: Campaign, command: IssueCoupon, coupon_id: str, issue_number: int
    ) -> Coupon:
        """The campaign's coupon with this number."""
        return cls(
            coupon_id,
            campaign.campaign_id,
            command.user_id,
            issue_number,
            command.request_id,
            issue_time=campaign.as_of,
            expire_time=campaign.as_of + timedelta(microseconds=campaign.coupon_lifetime_us),
            as_of=campaign.as_of,
        )

    @property
    def state(self) -> CouponState:
        """The state at ``as_of``. No row is written when a coupon expires."""
        if self.redeem_request_id is not None:
            return CouponState.REDEEMED
        return CouponState.EXPIRED if self.as_of >= self.expire_time else CouponState.ISSUED

    def unused(self, as_of: datetime) -> Coupon:
        """The coupon at that time, without a redemption."""
        return replace(self, as_of=as_of, redeem_request_id=None, order_id=None, redeem_time=None)

    def redeem(self, command: RedeemCoupon, terms: Terms) -> tuple[Coupon, Redemption]:
        """Redeem it now.

        Raises CouponNotUsable, CouponExpired, CouponWithoutEffect, or as ``Terms.discount``.
        """
        if self.state is CouponState.REDEEMED:
            raise coupon_not_usable(command)
        if self.state is CouponState.EXPIRED:
            raise CouponExpired(coupon_id=self.coupon_id, expire_time=self.expire_time.isoformat())
        discount = terms.discount(command.order_amount)
        if discount.amount_minor == 0:
            raise CouponWithoutEffect(coupon_id=self.coupon_id)
        redemption = Redemption(
            self.user_id,
            command.request_id,
            self.coupon_id,
            command.order_id,
            command.order_amount.currency_code,
            command.order_amount.amount_minor,
            discount.amount_minor,
            self.as_of,
            origin=command.origin,
        )
        redeemed = replace(
            self,
            redeem_request_id=command.request_id,
            order_id=command.order_id,
            redeem_time=self.as_of,
        )
        return redeemed, redemption

    def restore(self, command: RestoreCoupon, redemption: Redemption) -> tuple[Coupon, Redemption]:
        """Undo the redemption now, even if the coupon has expired since."""
        assert redemption.live
        assert self.redeem_request_id == redemption.request_id == command.redeem_request_id
        restored = replace(
            redemption, restore_request_id=command.request_id, restore_time=self.as_of
        )
        return self.unused(self.as_of), restored


def coupon_not_usable(command: RedeemCoupon) -> CouponNotUsable:
    return CouponNotUsable(coupon_id=command.coupon_id, user_id=command.user_id)
