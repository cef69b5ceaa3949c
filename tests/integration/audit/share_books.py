"""A campaign with shares in the clean books: 5 coupons over 2 shares, 3 of them issued.

| share | numbers | issued |
|-------|---------|--------|
| 0 | 1 to 3 | 1 to eve, 2 to fay |
| 1 | 4 and 5 | 4 to gus |
"""

from __future__ import annotations

from typing import Final

from tests.integration.audit.books import answer, completed, insert, uid

SPLIT: Final = uid(6)
OF_EVE, OF_FAY, OF_GUS = (uid(number) for number in range(7, 10))


def shares() -> str:
    """The campaign, its shares and their coupons."""
    columns = "campaign_id percent_discount max_discount_minor quantity issued request_id shares"
    values = (SPLIT, 10, 500, 5, 0, "campaign-2", 2)
    row = completed("campaigns", columns, *values)
    return (
        insert("campaigns", columns, *values)
        + answer("CreateCampaign", "", "campaign-2", row | {"terms": row})
        + _share(0, 1, 3, 2)
        + _share(1, 4, 2, 1)
        + _coupon(OF_EVE, "eve", 1)
        + _coupon(OF_FAY, "fay", 2)
        + _coupon(OF_GUS, "gus", 4)
    )


def _share(share: int, first_number: int, quantity: int, issued: int) -> str:
    columns = "campaign_id share first_number quantity issued"
    return insert("campaign_shares", columns, SPLIT, share, first_number, quantity, issued)


def _coupon(coupon_id: str, user: str, number: int) -> str:
    columns = "campaign_id coupon_id user_id issue_number"
    row = completed("coupons", columns, SPLIT, coupon_id, user, number)
    return insert("coupons", columns, SPLIT, coupon_id, user, number) + answer(
        "IssueCoupon", user, "issue-1", row
    )
