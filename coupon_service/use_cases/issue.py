"""What the ways of issuing have in common: from a campaign's row, from its shares, by ticket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter

from common.request_key import Result
from coupon_service.errors import CouponAlreadyIssued
from coupon_service.model.coupon import Coupon, IssueCoupon

Issued = Result[Coupon]

ISSUED_BODY: Final = TypeAdapter(Coupon)
"""What the record of an IssueCoupon or a QueueCoupon has."""


@dataclass(frozen=True, slots=True)
class HasShares:
    """The outcome of an IssueCoupon on the row of a campaign that issues from its shares."""

    shares: int


def replay_or_refuse(command: IssueCoupon, coupon: Coupon) -> Issued:
    """The outcome for a user who has the coupon; the command's record may have been deleted."""
    if coupon.request_id != command.request_id or coupon.ticket_id is not None:
        raise CouponAlreadyIssued(
            campaign_id=coupon.campaign_id, user_id=coupon.user_id, coupon_id=coupon.coupon_id
        )
    return Result(coupon.unused(coupon.issue_time), replayed=True)
