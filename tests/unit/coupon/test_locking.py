"""The last guards of the strategy table become refusals."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import ConflictRetriesExhausted, Refusal, RequestIdReused
from common.money import Money
from coupon_service.errors import CouponAlreadyIssued, CouponNotUsable, CouponSoldOut
from coupon_service.locking import STRATEGIES
from coupon_service.model.coupon import IssueCoupon, RedeemCoupon, RestoreCoupon
from coupon_service.model.share import IssueFromShare
from coupon_service.tables import (
    ISSUED_WITHIN_QUANTITY,
    LIVE_REDEMPTION_ONCE,
    NUMBER_ONCE,
    REDEEM_REQUEST_ONCE,
    SHARE_WITHIN_QUANTITY,
    USER_ONCE,
)
from coupon_service.use_cases.coupon import _translate
from coupon_service.use_cases.issuance import _translate as _translate_issue
from coupon_service.use_cases.share import _translate as _translate_share

ISSUE = IssueCoupon("c1", "ann", "i1")
FROM_SHARE = IssueFromShare("c1", "ann", "i1", 0)
REDEEM = RedeemCoupon("k1", "ann", "o1", Money("KRW", 1), "r1")
RESTORE = RestoreCoupon("k1", "ann", "r1", "s1")


GUARDS = [
    (ISSUED_WITHIN_QUANTITY, _translate_issue, ISSUE, CouponSoldOut),
    (USER_ONCE, _translate_issue, ISSUE, CouponAlreadyIssued),
    (NUMBER_ONCE, _translate_issue, ISSUE, ConflictRetriesExhausted),
    (SHARE_WITHIN_QUANTITY, _translate_share, FROM_SHARE, ConflictRetriesExhausted),
    (USER_ONCE, _translate_share, FROM_SHARE, CouponAlreadyIssued),
    (NUMBER_ONCE, _translate_share, FROM_SHARE, ConflictRetriesExhausted),
    (LIVE_REDEMPTION_ONCE, _translate, REDEEM, CouponNotUsable),
    (REDEEM_REQUEST_ONCE, _translate, REDEEM, RequestIdReused),
]


@pytest.mark.parametrize(
    ("constraint", "translate", "command", "refusal"),
    GUARDS,
    ids=[f"{row[0]}-{type(row[2]).__name__}" for row in GUARDS],
)
def test_the_guard_becomes_a_refusal(
    constraint: str, translate: Any, command: Any, refusal: type[Refusal]
) -> None:
    assert constraint in STRATEGIES[type(command)].guards
    assert type(translate(constraint, command)) is refusal


def test_other_constraints_stay_defects() -> None:
    assert _translate_issue("another", ISSUE) is None
    assert _translate_share("another", FROM_SHARE) is None
    assert _translate("another", REDEEM) is None
    assert _translate(LIVE_REDEMPTION_ONCE, RESTORE) is None
