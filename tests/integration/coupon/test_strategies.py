"""Each command locks and writes rows as its row strategy says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from common.locking.strategy import RowStrategy
from coupon_service.locking import STRATEGIES
from coupon_service.model.campaign import CreateCampaign
from coupon_service.model.coupon import IssueCoupon, RedeemCoupon, RestoreCoupon
from tests.support.coupons import campaign, issue, redeem, restore


@contextmanager
def statements() -> Iterator[list[str]]:
    """The SQL that this process executes in the block."""
    executed: list[str] = []

    def record(_: Any, __: Any, statement: str, *___: Any) -> None:
        executed.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", record)
    try:
        yield executed
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", record)


def row_strategy(executed: list[str]) -> RowStrategy:
    """The row strategy of a transaction, from its first update of a campaign or coupon."""
    for position, statement in enumerate(executed):
        if "UPDATE campaigns SET" in statement or "UPDATE coupons SET" in statement:
            if any("FOR NO KEY UPDATE" in earlier for earlier in executed[:position]):
                return RowStrategy.FOR_UPDATE
            assert "IS NOT DISTINCT FROM" in statement
            return RowStrategy.CONDITIONAL_UPDATE
    return RowStrategy.INSERT


@pytest.mark.parametrize("redis_url", [""], ids=["no-redis"])
async def test_statements_follow_the_row_strategy(coupon: Any) -> None:
    with statements() as created:
        response = await coupon.CreateCampaign(campaign())
    with statements() as issued:
        response = await coupon.IssueCoupon(issue(response.campaign.campaign_id, "ann"))
    coupon_id = response.coupon.coupon_id
    with statements() as redeemed:
        await coupon.RedeemCoupon(redeem(coupon_id, "ann", "r1"))
    with statements() as restored:
        await coupon.RestoreCoupon(restore(coupon_id, "ann", "r1", "s1"))
    followed = {
        CreateCampaign: row_strategy(created),
        IssueCoupon: row_strategy(issued),
        RedeemCoupon: row_strategy(redeemed),
        RestoreCoupon: row_strategy(restored),
    }
    assert followed == {command: strategy.rows for command, strategy in STRATEGIES.items()}
