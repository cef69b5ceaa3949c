"""How the coupon service keeps its operations apart: the whole strategy, in one table.

Rows are locked in one order everywhere: campaigns or coupons by ascending id, a coupon's
redemptions under its row, answers last.
"""

from __future__ import annotations

from typing import Final

from common.locking.strategy import RowStrategy, Strategy
from coupon_service import tables
from coupon_service.model.campaigns import CreateCampaign, IssueCoupon
from coupon_service.model.coupons import RedeemCoupon, RestoreCoupon, Use

CAMPAIGN_KEY: Final = "coupon:issue:{campaign_id}"

STRATEGIES: Final[dict[type[CreateCampaign | IssueCoupon | Use], Strategy]] = {
    CreateCampaign: Strategy(
        redis_key=None,
        rows=RowStrategy.INSERT,
        rounds_max=1,
        guards=(tables.CAMPAIGN_REQUEST_ONCE,),
        why="Nobody else can know of a campaign that does not exist yet.",
    ),
    IssueCoupon: Strategy(
        redis_key=CAMPAIGN_KEY,
        rows=RowStrategy.FOR_UPDATE,
        rounds_max=1,
        guards=(tables.ISSUED_WITHIN_QUANTITY, tables.USER_ONCE, tables.NUMBER_ONCE),
        why="Everybody wants the same row at the same moment, and who came first is the point. An "
        "unlocked look sends those away who have theirs or come too late; the rest queue for the "
        "campaign's row, on which the next number is taken.",
    ),
    RedeemCoupon: Strategy(
        redis_key=None,
        rows=RowStrategy.CONDITIONAL_UPDATE,
        rounds_max=10,
        guards=(tables.LIVE_REDEMPTION_ONCE, tables.REDEEM_REQUEST_ONCE),
        why="A coupon is its user's alone, so rivals are rare: whoever finds it unused at the "
        "write has it, and whoever does not looks again, with a lock, and is refused.",
    ),
    RestoreCoupon: Strategy(
        redis_key=None,
        rows=RowStrategy.CONDITIONAL_UPDATE,
        rounds_max=10,
        guards=(tables.LIVE_REDEMPTION_ONCE, tables.REDEEM_REQUEST_ONCE),
        why="It frees the coupon only from the redemption it names. One that is still in flight "
        "meets the cancellation at its own row among the answers: the later of the two goes round.",
    ),
}


def issue_key(command: IssueCoupon) -> str | None:
    """The command's key on the first line of defence."""
    template = STRATEGIES[IssueCoupon].redis_key
    return template and template.format(campaign_id=command.campaign_id)
