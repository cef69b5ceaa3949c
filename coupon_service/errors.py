"""The refusals of the coupon service.

├── CampaignNotFound        NOT_FOUND             CAMPAIGN_NOT_FOUND
├── CouponNotFound          NOT_FOUND             COUPON_NOT_FOUND
├── CouponAlreadyIssued     ALREADY_EXISTS        COUPON_ALREADY_ISSUED
├── CampaignNotOpen         FAILED_PRECONDITION   CAMPAIGN_NOT_OPEN
├── CouponSoldOut           RESOURCE_EXHAUSTED    COUPON_SOLD_OUT
├── CouponNotUsable         FAILED_PRECONDITION   COUPON_NOT_USABLE
├── CouponExpired           FAILED_PRECONDITION   COUPON_EXPIRED
├── OrderAmountTooSmall     FAILED_PRECONDITION   ORDER_AMOUNT_TOO_SMALL
└── RedemptionCancelled     FAILED_PRECONDITION   REDEMPTION_CANCELLED
"""

from __future__ import annotations

from common.errors import Code, NotFound, QuotaViolation, Refusal


class CampaignNotFound(NotFound):
    """There is no such campaign."""

    reason = "CAMPAIGN_NOT_FOUND"


class CouponNotFound(NotFound):
    """The user has no such coupon."""

    reason = "COUPON_NOT_FOUND"


class CouponAlreadyIssued(Refusal):
    """The user has a coupon of this campaign; nobody gets two."""

    code = Code.ALREADY_EXISTS
    reason = "COUPON_ALREADY_ISSUED"


class CampaignNotOpen(Refusal):
    """The campaign issues coupons from its start_time until its end_time only."""

    reason = "CAMPAIGN_NOT_OPEN"


class CouponSoldOut(Refusal):
    """Every coupon of the campaign has been issued; none comes back."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "COUPON_SOLD_OUT"

    def __init__(self, *, campaign_id: str, user_id: str, quantity: int | None = None) -> None:
        super().__init__(campaign_id=campaign_id, user_id=user_id)
        gone = f"all {'' if quantity is None else f'{quantity} '}coupons have been issued"
        self.quota = (QuotaViolation(f"campaign:{campaign_id}", gone),)


class CouponNotUsable(Refusal):
    """The coupon is redeemed already."""

    reason = "COUPON_NOT_USABLE"


class CouponExpired(Refusal):
    """The coupon's expire_time has passed."""

    reason = "COUPON_EXPIRED"


class OrderAmountTooSmall(Refusal):
    """The order costs less than the coupon's campaign asks for."""

    reason = "ORDER_AMOUNT_TOO_SMALL"


class RedemptionCancelled(Refusal):
    """This redemption was restored or cancelled and cannot happen any more."""

    reason = "REDEMPTION_CANCELLED"
