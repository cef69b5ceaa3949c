"""Violated constraints in the words of the contract."""

from __future__ import annotations

import pytest

from common.errors import ConflictRetriesExhausted, Refusal
from coupon_service.errors import CouponAlreadyIssued, CouponSoldOut
from coupon_service.model.campaigns import IssueCoupon
from coupon_service.tables import ISSUED_WITHIN_QUANTITY, NUMBER_ONCE, USER_ONCE
from coupon_service.use_cases.issuing import _translate


@pytest.mark.parametrize(
    ("constraint", "refusal"),
    [
        (ISSUED_WITHIN_QUANTITY, CouponSoldOut),
        (USER_ONCE, CouponAlreadyIssued),
        (NUMBER_ONCE, ConflictRetriesExhausted),
    ],
)
def test_issuings_last_guards_refuse(constraint: str, refusal: type[Refusal]) -> None:
    told = _translate(constraint, IssueCoupon("campaign-1", "ann", "r1"))
    assert type(told) is refusal
    assert told.metadata["campaign_id"] == "campaign-1"


def test_what_no_guard_is_stays_an_error() -> None:
    assert _translate("another", IssueCoupon("campaign-1", "ann", "r1")) is None
