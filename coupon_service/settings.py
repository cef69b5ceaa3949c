"""The coupon service's settings: those every service has, with its own defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from common.setting_types import RateSetting, count, rate, seconds
from common.settings import ServiceSettings
from common.urls import BindAddress


class CouponSettings(ServiceSettings):
    service: ClassVar[str] = "coupon"
    saga_methods: ClassVar[tuple[str, ...]] = (
        "tally.coupon.v1.CouponService/RedeemCoupon",
        "tally.coupon.v1.CouponService/RestoreCoupon",
    )
    limited_by: ClassVar[Mapping[str, str]] = {
        "tally.coupon.v1.CouponService/IssueCoupon": "rate_limit_issue",
        "tally.coupon.v1.CouponService/BatchIssueCoupons": "rate_limit_issue",
        "tally.coupon.v1.CouponService/QueueCoupon": "rate_limit_issue",
    }
    bind: BindAddress = "127.0.0.1:50052"
    rate_limit_issue: RateSetting = rate(
        5, 20, "Calls of a user to IssueCoupon, and to QueueCoupon, as RATE_LIMIT_WRITES."
    )
    queue_tickets_max: int = count(
        100_000,
        "Tickets that wait in the queue of one campaign, about 500 bytes of Redis each; more are "
        "refused with QUEUE_FULL.",
        most=10_000_000,
    )
    ticket_retention_s: float = seconds(
        86_400.0,
        "How long a refused ticket can be read, and a queue is kept after its campaign has ended. "
        "A younger ticket that is found nowhere is TICKET_LOST, an older one TICKET_NOT_FOUND.",
        least=60.0,
        most=2_592_000,
    )
