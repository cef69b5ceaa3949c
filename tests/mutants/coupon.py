"""Planted bugs of the coupon service."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_MODEL: Final = "tests/unit/coupon/test_model.py::"
_USE: Final = "tests/integration/coupon/test_redemptions.py::"
_BAD_INPUT: Final = "tests/integration/contract/test_bad_input.py::"
_CAMPAIGNS: Final = "tests/integration/coupon/test_campaigns.py::"
_ISSUANCE: Final = "tests/concurrency/coupon/test_issuance.py::"
_STRATEGIES: Final = "tests/integration/services/test_strategies.py::"
_REDEMPTIONS: Final = "tests/concurrency/coupon/test_redemptions.py::"

COUPON: Final = (
    Mutant(
        "one-coupon-too-many",
        "a campaign issues one coupon more than its quantity",
        file="coupon_service/model/campaign.py",
        old="""        if self.issued >= self.quantity:
            raise CouponSoldOut(""",
        new="""        if self.issued > self.quantity:
            raise CouponSoldOut(""",
        tests=(f"{_MODEL}test_numbers_go_from_1_to_the_quantity",),
    ),
    Mutant(
        "issue-without-row-lock",
        "coupons are issued without the lock on the campaign's row",
        file="coupon_service/store/campaign.py",
        old="""await _CAMPAIGNS.lock(
        connection, campaign_ids, wait_for_locks=wait_for_locks, also=also
    )""",
        new="await _CAMPAIGNS.read(connection, campaign_ids)",
        tests=(
            f"{_ISSUANCE}test_each_guard_alone_issues_exactly_the_quantity[row lock-no-redis]",
            f"{_STRATEGIES}test_an_operations_statements_follow_its_row_strategy[IssueCoupon]",
        ),
    ),
    Mutant(
        "two-coupons-of-a-user",
        "the database accepts two coupons of one campaign for one user",
        file="coupon_service/migrations/0001_campaigns_coupons_redemptions.py",
        old="CONSTRAINT coupons_user_once UNIQUE (campaign_id, user_id),",
        new="CONSTRAINT coupons_user_once UNIQUE (campaign_id, user_id, coupon_id),",
        tests=("tests/integration/services/test_schema.py::test_the_migrations_make_the_tables",),
    ),
    Mutant(
        "two-live-redemptions",
        "the database accepts two live redemptions of a coupon",
        file="coupon_service/migrations/0001_campaigns_coupons_redemptions.py",
        old="CREATE UNIQUE INDEX redemptions_live_once\n    ON redemptions (coupon_id)",
        new="CREATE UNIQUE INDEX redemptions_live_once\n    ON redemptions (coupon_id, request_id)",
        tests=(f"{_REDEMPTIONS}test_one_order_gets_the_coupon_with_either_guard",),
    ),
    Mutant(
        "redeem-without-comparison",
        "a redemption is written although the coupon has changed since it was read",
        file="coupon_service/store/coupon.py",
        old="    .where(coupons.c.redeem_request_id"
        ".is_not_distinct_from(_changed.c.loaded_request_id)),\n",
        new="    .where(sa.true()),\n",
        tests=(
            f"{_REDEMPTIONS}test_one_order_gets_the_coupon_with_either_guard",
            f"{_REDEMPTIONS}test_late_restoration_leaves_the_next_redemption_alone",
        ),
    ),
    Mutant(
        "redeem-a-used-coupon",
        "a redeemed coupon can be redeemed again",
        file="coupon_service/model/coupon.py",
        old="if self.state is CouponState.REDEEMED:\n            raise coupon_not_usable(command)",
        new="if self.state is CouponState.REDEEMED and self.order_id == command.order_id:\n"
        "            raise coupon_not_usable(command)",
        tests=(f"{_MODEL}TestCouponMachine",),
    ),
    Mutant(
        "redeem-for-nothing",
        "a coupon that takes nothing off an order is used up",
        file="coupon_service/model/coupon.py",
        old="if discount.amount_minor == 0:",
        new="if discount.amount_minor < 0:",
        tests=(f"{_USE}test_a_coupon_that_takes_nothing_off_is_not_used_up",),
    ),
    Mutant(
        "restore-without-tombstone",
        "a restoration before its redemption does not prevent it",
        file="coupon_service/use_cases/coupon.py",
        old="""        records.cancel(redeem_key)
        return Result(CouponChange(coupon))""",
        new="""        return Result(CouponChange(coupon))""",
        tests=(f"{_USE}test_restoration_before_its_redemption_prevents_it",),
    ),
    Mutant(
        "restore-any-redemption",
        "a restoration of a coupon undoes whichever redemption is live",
        file="coupon_service/use_cases/coupon.py",
        old="""    if redemption.restore_time is not None:
        # The coupon""",
        new="""    if redemption.restore_time is not None and coupon.redeem_request_id is None:
        # The coupon""",
        tests=(f"{_USE}test_restored_coupon_is_free_for_another_redemption_only",),
    ),
    Mutant(
        "percentage-rounded-up",
        "a percentage is rounded up to the minor unit",
        file="coupon_service/model/campaign.py",
        old="discount = amount * self.percent_discount // 100",
        new="discount = -(-amount * self.percent_discount // 100)",
        tests=(f"{_MODEL}test_percentage_is_rounded_down",),
    ),
    Mutant(
        "discount-above-the-order",
        "a fixed discount may exceed the order's amount",
        file="coupon_service/model/campaign.py",
        old="return Money(order_amount.currency_code, min(discount, amount))",
        new="return Money(order_amount.currency_code, discount)",
        tests=(f"{_MODEL}test_discount_is_within_every_limit",),
    ),
    Mutant(
        "redeem-an-expired-coupon",
        "an expired coupon can be redeemed",
        file="coupon_service/model/coupon.py",
        old="return CouponState.EXPIRED if self.as_of >= self.expire_time else CouponState.ISSUED",
        new="return CouponState.ISSUED",
        tests=(f"{_USE}test_expired_coupon_is_shown_and_refused",),
    ),
    Mutant(
        "coupons-of-other-users",
        "a user can read the coupons of others",
        file="coupon_service/use_cases/coupon.py",
        old="if coupon is None or coupon.user_id != user_id:",
        new="if coupon is None:",
        tests=(f"{_BAD_INPUT}test_user_without_anything_is_refused",),
    ),
)
