"""The keys and the last guards of the strategy table."""

from __future__ import annotations

import pytest

from common.errors import ConflictRetriesExhausted, Refusal, RequestIdReused
from common.money import Money
from coupon_service.errors import CouponAlreadyIssued, CouponNotUsable, CouponSoldOut
from coupon_service.locking import STRATEGIES
from coupon_service.model.coupon import IssueCoupon, RedeemCoupon, RestoreCoupon
from coupon_service.tables import (
    ISSUED_WITHIN_QUANTITY,
    LIVE_REDEMPTION_ONCE,
    NUMBER_ONCE,
    REDEEM_REQUEST_ONCE,
    USER_ONCE,
)
from coupon_service.use_cases.campaign import _translate_issue
from coupon_service.use_cases.coupon import _translate

ISSUE = IssueCoupon("c1", "ann", "i1")
REDEEM = RedeemCoupon("k1", "ann", "o1", Money("KRW", 1), "r1")
RESTORE = RestoreCoupon("k1", "ann", "r1", "s1")


def test_issues_of_one_campaign_share_a_key() -> None:
    strategy = STRATEGIES[IssueCoupon]
    assert strategy.key_of(ISSUE) == strategy.key_of(IssueCoupon("c1", "bob", "i2"))
    assert strategy.key_of(ISSUE) == "coupon:issue:c1"
    assert strategy.key_of(IssueCoupon("c2", "ann", "i1")) == "coupon:issue:c2"


@pytest.mark.parametrize(
    ("constraint", "refusal"),
    [
        (ISSUED_WITHIN_QUANTITY, CouponSoldOut),
        (USER_ONCE, CouponAlreadyIssued),
        (NUMBER_ONCE, ConflictRetriesExhausted),
    ],
)
def test_guards_of_issue_become_refusals(constraint: str, refusal: type[Refusal]) -> None:
    assert constraint in STRATEGIES[IssueCoupon].guards
    translated = _translate_issue(constraint, ISSUE)
    assert type(translated) is refusal
    assert translated.metadata["campaign_id"] == "c1"


@pytest.mark.parametrize(
    ("constraint", "refusal"),
    [(LIVE_REDEMPTION_ONCE, CouponNotUsable), (REDEEM_REQUEST_ONCE, RequestIdReused)],
)
def test_guards_of_redeem_become_refusals(constraint: str, refusal: type[Refusal]) -> None:
    assert constraint in STRATEGIES[RedeemCoupon].guards
    assert type(_translate(constraint, REDEEM)) is refusal


def test_other_constraints_stay_defects() -> None:
    assert _translate_issue("another", ISSUE) is None
    assert _translate("another", REDEEM) is None
    assert _translate(LIVE_REDEMPTION_ONCE, RESTORE) is None
