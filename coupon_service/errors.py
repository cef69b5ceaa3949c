"""The refusals of the coupon service; one without a code is FAILED_PRECONDITION."""

from __future__ import annotations

from common.errors import Code, NotFound, QuotaViolation, Refusal


class CampaignNotFound(NotFound, reason="CAMPAIGN_NOT_FOUND"):
    """There is no such campaign."""


class CouponNotFound(NotFound, reason="COUPON_NOT_FOUND"):
    """The user has no such coupon."""


class CouponAlreadyIssued(Refusal, code=Code.ALREADY_EXISTS, reason="COUPON_ALREADY_ISSUED"):
    """The user has a coupon of this campaign; nobody gets two."""


class CampaignNotOpen(Refusal, reason="CAMPAIGN_NOT_OPEN"):
    """The campaign issues coupons from its start_time until its end_time only."""


class CouponSoldOut(Refusal, code=Code.RESOURCE_EXHAUSTED, reason="COUPON_SOLD_OUT"):
    """Every coupon of the campaign has been issued; none comes back."""

    def __init__(self, *, campaign_id: str, user_id: str, quantity: int | None = None) -> None:
        super().__init__(campaign_id=campaign_id, user_id=user_id)
        gone = f"all {'' if quantity is None else f'{quantity} '}coupons have been issued"
        self.quota = (QuotaViolation(f"campaign:{campaign_id}", gone),)


class CouponNotUsable(Refusal, reason="COUPON_NOT_USABLE"):
    """The coupon is redeemed already."""


class CouponExpired(Refusal, reason="COUPON_EXPIRED"):
    """The coupon's expire_time has passed."""


class CouponWithoutEffect(Refusal, reason="COUPON_WITHOUT_EFFECT"):
    """The coupon would take nothing off the order; it is not used up."""


class OrderAmountTooSmall(Refusal, reason="ORDER_AMOUNT_TOO_SMALL"):
    """The order costs less than the coupon's campaign asks for."""


class RedemptionCancelled(Refusal, reason="REDEMPTION_CANCELLED"):
    """This redemption was restored or cancelled and cannot happen any more."""
