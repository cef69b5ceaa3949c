"""The locking strategy of every coupon operation, in one table.

Rows are locked in one order everywhere: campaigns, shares or coupons by ascending id, then new
coupons by campaign and user, or a coupon's redemptions, which its row protects, then idempotency
records. A transaction waits for a share only while it has locked none but lower ones.
"""

from __future__ import annotations

from typing import Final

from common.locking.strategy import RowStrategy, Strategies, Strategy
from coupon_service import tables
from coupon_service.model.campaign import CreateCampaign
from coupon_service.model.coupon import IssueCoupon, RedeemCoupon, RestoreCoupon
from coupon_service.model.share import IssueFromShare
from coupon_service.model.ticket import IssueTickets

CAMPAIGN_KEY: Final = "coupon:issue:{campaign_id}"
SHARE_KEY: Final = "coupon:issue:{campaign_id}:{share}"
NEW_COUPON: Final = "coupon:{campaign_id}:{user_id}"

STRATEGIES: Final[Strategies] = {
    CreateCampaign: Strategy(
        rows=RowStrategy.INSERT,
        guards=(tables.CAMPAIGN_REQUEST_ONCE,),
        why="No other call can know a campaign that does not exist yet.",
    ),
    IssueCoupon: Strategy(
        redis_key=CAMPAIGN_KEY,
        rows=RowStrategy.FOR_UPDATE,
        guards=(
            tables.ISSUED_WITHIN_QUANTITY,
            tables.USER_ONCE,
            tables.NUMBER_ONCE,
            tables.QUEUE_ONLY,
        ),
        why="All calls update one row at the same moment, and the order of arrival decides: they "
        "queue for the campaign's row, which counts the numbers. Once the campaign is over, a "
        "read without a lock refuses those who come too late.",
    ),
    IssueFromShare: Strategy(
        redis_key=SHARE_KEY,
        rows=RowStrategy.FOR_UPDATE,
        guards=(tables.SHARE_WITHIN_QUANTITY, tables.USER_ONCE, tables.NUMBER_ONCE),
        new_row=NEW_COUPON,
        why="A replica draws from a share of its own, whose row no other locks. If it is empty, or "
        "locked all the same, the next free one is locked instead: no batch waits for another's "
        "share while one with coupons is free. The campaign's row is not locked, so that two "
        "replicas may issue to one user at once: the unique constraint decides, and the loser's "
        "batch is decided again.",
    ),
    IssueTickets: Strategy(
        redis_key=CAMPAIGN_KEY,
        rows=RowStrategy.FOR_UPDATE,
        many="tickets",
        guards=(
            tables.ISSUED_WITHIN_QUANTITY,
            tables.USER_ONCE,
            tables.NUMBER_ONCE,
            tables.TICKET_ONCE,
        ),
        why="One consumer issues the coupons of a queue in its order. The campaign's row has the "
        "highest fence of its consumers: one with a lower fence, as after a pause, writes "
        "nothing. The key is that of IssueCoupon, which locks the same row.",
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
