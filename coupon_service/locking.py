"""The locking strategy of every coupon operation, in one table.

Rows are locked in one order everywhere: campaigns or coupons by ascending id, then a coupon's
redemptions, which its row protects, then idempotency records.
"""

from __future__ import annotations

from typing import Final

from common.locking.strategy import RowStrategy, Strategies, Strategy
from coupon_service import tables
from coupon_service.model.campaign import CreateCampaign
from coupon_service.model.coupon import IssueCoupon, RedeemCoupon, RestoreCoupon

CAMPAIGN_KEY: Final = "coupon:issue:{campaign_id}"

STRATEGIES: Final[Strategies] = {
    CreateCampaign: Strategy(
        rows=RowStrategy.INSERT,
        guards=(tables.CAMPAIGN_REQUEST_ONCE,),
        why="No other call can know a campaign that does not exist yet.",
    ),
    IssueCoupon: Strategy(
        redis_key=CAMPAIGN_KEY,
        rows=RowStrategy.FOR_UPDATE,
        guards=(tables.ISSUED_WITHIN_QUANTITY, tables.USER_ONCE, tables.NUMBER_ONCE),
        why="All users want the same row at the same moment, and the order of arrival decides: "
        "they queue for the campaign's row, which counts the numbers. Once the campaign is over, a "
        "read without a lock refuses those who come too late.",
    ),
    RedeemCoupon: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        guards=(tables.LIVE_REDEMPTION_ONCE, tables.REDEEM_REQUEST_ONCE),
        why="A coupon belongs to one user, so contention is rare. The update applies only while "
        "the coupon is as it was read; otherwise the command waits for the row lock and is decided "
        "again.",
    ),
    RestoreCoupon: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        rounds_max=10,
        guards=(tables.LIVE_REDEMPTION_ONCE, tables.REDEEM_REQUEST_ONCE),
        why="It undoes only the redemption that it names. If that one is in flight, both write the "
        "same idempotency record, and the later of the two is decided again.",
    ),
}
