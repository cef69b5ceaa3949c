"""The ticket that a coupon was issued by.

Revision ID: coupon_0004
"""

from __future__ import annotations

from alembic import op

from common.db.migrations import execute

revision = "coupon_0004"
down_revision = "coupon_0003"

COLUMN = """
ALTER TABLE coupons ADD COLUMN IF NOT EXISTS ticket_id uuid;
"""

# Without a lock that stops writes: no replica uses tickets before this revision. An attempt that
# was interrupted may have left an index that is not valid.
INDEX = """
DROP INDEX CONCURRENTLY IF EXISTS coupons_ticket_once;
CREATE UNIQUE INDEX CONCURRENTLY coupons_ticket_once
    ON coupons (ticket_id) WHERE ticket_id IS NOT NULL;
"""


def upgrade() -> None:
    execute(COLUMN)
    with op.get_context().autocommit_block():
        execute(INDEX)
