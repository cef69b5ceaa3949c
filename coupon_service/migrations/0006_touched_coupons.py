"""Indexes of coupons and redemptions by time: the audit finds what was touched.

Revision ID: coupon_0006
"""

from __future__ import annotations

from common.db.migrations import create_index

revision = "coupon_0006"
down_revision = "coupon_0005"


def upgrade() -> None:
    create_index("coupons_touched", "coupons USING brin (issue_time, redeem_time)")
    create_index("redemptions_touched", "redemptions USING brin (redeem_time, restore_time)")
