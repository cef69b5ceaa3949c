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


class CampaignQueued(Refusal, reason="CAMPAIGN_QUEUED"):
    """The campaign issues coupons only by ticket; call QueueCoupon."""


class TicketNotFound(NotFound, reason="TICKET_NOT_FOUND"):
    """The user has no such ticket."""


class TicketLost(Refusal, code=Code.UNAVAILABLE, reason="TICKET_LOST", retry_after_s=1.0):
    """The queue is lost or cannot be reached; queue again with the same request_id."""


class QueueFull(Refusal, code=Code.RESOURCE_EXHAUSTED, reason="QUEUE_FULL", retry_after_s=5.0):
    """As many tickets of the campaign wait as its queue can hold; repeat the call later."""

    def __init__(self, *, campaign_id: str, waiting_max: int) -> None:
        super().__init__(campaign_id=campaign_id)
        self.quota = (QuotaViolation(f"queue:{campaign_id}", f"{waiting_max} tickets wait"),)


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
