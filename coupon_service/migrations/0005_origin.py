"""By whose call a coupon was redeemed.

A replica of the release before writes redemptions without it.

Revision ID: coupon_0005
"""

from __future__ import annotations

from common.db.migrations import execute

revision = "coupon_0005"
down_revision = "coupon_0004"

COLUMN = """
ALTER TABLE redemptions ADD COLUMN IF NOT EXISTS origin text;
"""


def upgrade() -> None:
    execute(COLUMN)
