"""The strategy table says what the contract fixes."""

from __future__ import annotations

from common.locking.strategy import RowStrategy
from coupon_service.locking import STRATEGIES, issue_key
from coupon_service.model.campaigns import IssueCoupon
from coupon_service.model.coupons import RedeemCoupon, RestoreCoupon


def test_issues_of_one_campaign_share_a_key_whoever_asks() -> None:
    keys = {issue_key(IssueCoupon("c1", user, "i1")) for user in ("ann", "bob")}
    assert keys == {"coupon:issue:c1"}
    assert issue_key(IssueCoupon("c2", "ann", "i1")) == "coupon:issue:c2"


def test_every_operation_has_a_last_guard() -> None:
    assert all(strategy.guards for strategy in STRATEGIES.values())
    assert STRATEGIES[IssueCoupon].rows is RowStrategy.FOR_UPDATE
    for command in (RedeemCoupon, RestoreCoupon):
        assert STRATEGIES[command].redis_key is None
        assert STRATEGIES[command].rows is RowStrategy.CONDITIONAL_UPDATE
