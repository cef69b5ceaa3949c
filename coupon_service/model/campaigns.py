"""Campaigns: what their coupons are worth, how many there are, and who may have one."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

from common.errors import InvalidField
from common.ids import is_id
from common.request_key import RequestKey, digest_of
from coupon_service.errors import (
    CampaignNotFound,
    CampaignNotOpen,
    CouponAlreadyIssued,
    CouponSoldOut,
)
from coupon_service.model.coupons import Coupon
from coupon_service.model.terms import Terms


class CampaignState(enum.StrEnum):
    """Where a campaign stands at a time."""

    SCHEDULED = "SCHEDULED"
    OPEN = "OPEN"
    SOLD_OUT = "SOLD_OUT"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class CreateCampaign:
    """Begin a campaign. An administrator's call: its request_id is nobody's in particular."""

    name: str
    terms: Terms
    quantity: int
    start_time: datetime
    end_time: datetime
    coupon_lifetime_us: int
    request_id: str

    def __post_init__(self) -> None:
        # Finer than a microsecond the contract's own check can see an order that is lost here.
        if self.start_time >= self.end_time:
            raise InvalidField("end_time", "must be after start_time by a microsecond at least")

    @property
    def key(self) -> RequestKey:
        return RequestKey("CreateCampaign", "", self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(
            self.name,
            self.terms.currency_code,
            self.terms.fixed_discount_minor,
            self.terms.percent_discount,
            self.terms.max_discount_minor,
            self.terms.min_order_minor,
            self.quantity,
            self.start_time.isoformat(),
            self.end_time.isoformat(),
            self.coupon_lifetime_us,
        )


@dataclass(frozen=True, slots=True)
class IssueCoupon:
    """Give the user one coupon of the campaign, if any are left."""

    campaign_id: str
    user_id: str
    request_id: str

    @property
    def key(self) -> RequestKey:
        return RequestKey("IssueCoupon", self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.campaign_id)


@dataclass(slots=True)
class Campaign:
    """A campaign as it stood at ``as_of``, by the database's clock."""

    campaign_id: str
    name: str
    terms: Terms
    quantity: int
    issued: int
    start_time: datetime
    end_time: datetime
    coupon_lifetime_us: int
    create_time: datetime
    as_of: datetime

    @classmethod
    def create(cls, command: CreateCampaign, campaign_id: str, now: datetime) -> Campaign:
        return cls(
            campaign_id,
            command.name,
            command.terms,
            command.quantity,
            0,
            command.start_time,
            command.end_time,
            command.coupon_lifetime_us,
            create_time=now,
            as_of=now,
        )

    @property
    def state(self) -> CampaignState:
        if self.as_of >= self.end_time:
            return CampaignState.ENDED
        if self.issued >= self.quantity:
            return CampaignState.SOLD_OUT
        if self.as_of < self.start_time:
            return CampaignState.SCHEDULED
        return CampaignState.OPEN

    def admit(self, command: IssueCoupon) -> None:
        """Whether a coupon can be issued now. Raises CampaignNotOpen or CouponSoldOut."""
        if not self.start_time <= self.as_of < self.end_time:
            raise CampaignNotOpen(
                campaign_id=self.campaign_id,
                start_time=self.start_time.isoformat(),
                end_time=self.end_time.isoformat(),
            )
        if self.issued >= self.quantity:
            raise CouponSoldOut(
                campaign_id=self.campaign_id, user_id=command.user_id, quantity=self.quantity
            )

    def issue(self, command: IssueCoupon, coupon_id: str) -> Coupon:
        """The next coupon. Raises as ``admit``; whether the user has one is not asked here."""
        self.admit(command)
        self.issued += 1
        return Coupon(
            coupon_id,
            self.campaign_id,
            command.user_id,
            self.issued,
            command.request_id,
            issue_time=self.as_of,
            expire_time=self.as_of + timedelta(microseconds=self.coupon_lifetime_us),
            as_of=self.as_of,
        )


def already_issued(coupon: Coupon) -> CouponAlreadyIssued:
    return CouponAlreadyIssued(
        campaign_id=coupon.campaign_id, user_id=coupon.user_id, coupon_id=coupon.coupon_id
    )


def campaign_not_found(campaign_id: str) -> CampaignNotFound:
    # What could not be an id is not told back: it may be long, or not be text at all.
    return CampaignNotFound(**({"campaign_id": campaign_id} if is_id(campaign_id) else {}))
