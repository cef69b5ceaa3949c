"""Campaigns: what a coupon takes off an order, how many coupons there are, and when."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from common.currencies import require_listed
from common.errors import CurrencyMismatch, InvalidField
from common.money import Money
from common.request_key import RequestKey, digest_of
from coupon_service.errors import (
    CampaignNotOpen,
    CampaignQueued,
    CouponSoldOut,
    OrderAmountTooSmall,
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a coupon takes off an order, in minor units: a fixed amount, or a percentage."""

    currency_code: str | None
    """None: there is no amount, and the percentage applies to any currency."""
    fixed_discount_minor: int | None
    percent_discount: int | None
    max_discount_minor: int | None
    min_order_minor: int | None

    @classmethod
    def of(
        cls,
        *,
        fixed_discount: Money | None = None,
        percent_discount: int | None = None,
        max_discount: Money | None = None,
        min_order_amount: Money | None = None,
    ) -> Terms:
        """Terms whose amounts are all in one currency. Raises CurrencyMismatch."""
        amounts = [money for money in (fixed_discount, max_discount, min_order_amount) if money]
        currency_code = amounts[0].currency_code if amounts else None
        for money in amounts:
            if money.currency_code != currency_code:
                raise CurrencyMismatch(expected=currency_code or "", got=money.currency_code)
        return cls(
            currency_code,
            fixed_discount.amount_minor if fixed_discount else None,
            percent_discount,
            max_discount.amount_minor if max_discount else None,
            min_order_amount.amount_minor if min_order_amount else None,
        )

    def require_listed_currency(self) -> None:
        """Raise InvalidField for the first amount unless its currency is listed."""
        for field, amount_minor in (
            ("fixed_discount", self.fixed_discount_minor),
            ("max_discount", self.max_discount_minor),
            ("min_order_amount", self.min_order_minor),
        ):
            if amount_minor is not None:
                assert self.currency_code is not None, "an amount has its currency"
                require_listed(self.currency_code, f"{field}.currency_code")

    def discount(self, order_amount: Money) -> Money:
        """The discount on an order: from 0 to its amount. A percentage is rounded down.

        Raises CurrencyMismatch or OrderAmountTooSmall.
        """
        if self.currency_code not in (None, order_amount.currency_code):
            raise CurrencyMismatch(expected=self.currency_code, got=order_amount.currency_code)
        amount = order_amount.amount_minor
        if self.min_order_minor is not None and amount < self.min_order_minor:
            raise OrderAmountTooSmall(min_order_amount_minor=str(self.min_order_minor))
        if self.fixed_discount_minor is not None:
            discount = self.fixed_discount_minor
        else:
            assert self.percent_discount is not None, "one of the two discounts"
            discount = amount * self.percent_discount // 100
        if self.max_discount_minor is not None:
            discount = min(discount, self.max_discount_minor)
        return Money(order_amount.currency_code, min(discount, amount))


class CampaignState(enum.StrEnum):
    """The state of a campaign at a time."""

    SCHEDULED = "SCHEDULED"
    OPEN = "OPEN"
    SOLD_OUT = "SOLD_OUT"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class CreateCampaign:
    """Create a campaign: an administrator's call, so its request_id has no user."""

    name: str
    terms: Terms
    quantity: int
    start_time: datetime
    end_time: datetime
    coupon_lifetime_us: int
    request_id: str
    shares: int = 1
    queue_only: bool = False

    def __post_init__(self) -> None:
        # The request's validation compares nanoseconds; here they are cut to microseconds.
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
            # Without it, the digest is that of a release without shares.
            *((self.shares,) if self.shares > 1 else ()),
            # Without it, the digest is that of a release without queues.
            *(("queue_only",) if self.queue_only else ()),
        )


@dataclass(slots=True)
class Campaign:
    """A campaign at the time ``as_of`` of the database's clock."""

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
    shares: int = 1
    """Over how many rows the quantity is split (``model.share``). Answers of an earlier release do
    not have it."""
    queue_only: bool = False
    """Whether coupons are issued only by ticket. Answers of an earlier release do not have it."""

    @classmethod
    def create(cls, command: CreateCampaign, campaign_id: str, now: datetime) -> Campaign:
        """A new campaign.

        Raises InvalidField if the currency of its amounts is not listed, and for a queue of a
        campaign with shares.
        """
        command.terms.require_listed_currency()
        if command.queue_only and command.shares > 1:
            raise InvalidField("queue_only", "must not be set together with shares")
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
            shares=command.shares,
            queue_only=command.queue_only,
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

    def check_queueable(self) -> None:
        """Raise InvalidField if it has shares: then its row, which has the fence, is not locked."""
        if self.shares > 1:
            raise InvalidField("campaign_id", "names a campaign with shares, which has no queue")

    def check_not_queued(self) -> None:
        """Raise CampaignQueued if coupons are issued only by ticket."""
        if self.queue_only:
            raise CampaignQueued(campaign_id=self.campaign_id)

    def admit(self, user_id: str) -> None:
        """Check that a coupon can be issued now. Raises CampaignNotOpen or CouponSoldOut."""
        self.check_open()
        if self.issued >= self.quantity:
            raise CouponSoldOut(
                campaign_id=self.campaign_id, user_id=user_id, quantity=self.quantity
            )

    def check_open(self) -> None:
        """Raise CampaignNotOpen unless it is between its start and its end."""
        if not self.start_time <= self.as_of < self.end_time:
            raise CampaignNotOpen(
                campaign_id=self.campaign_id,
                start_time=self.start_time.isoformat(),
                end_time=self.end_time.isoformat(),
            )

    def take_number(self, user_id: str) -> int:
        """Count one more coupon and return its number. Raises as ``admit``."""
        self.admit(user_id)
        self.issued += 1
        return self.issued
