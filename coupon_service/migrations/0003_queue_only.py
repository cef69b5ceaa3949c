"""Campaigns whose coupons are issued only by ticket, and the fence of the queue's consumer.

Revision ID: coupon_0003

A replica of the earlier release knows no tickets and would issue the coupons of such a campaign to
whoever calls. It raises ``issued`` alone, so the constraint refuses its writes.
"""

from __future__ import annotations

from alembic import op

from common.db.migrations import execute

revision = "coupon_0003"
down_revision = "coupon_0002"

COLUMNS = """
ALTER TABLE campaigns
    ADD COLUMN IF NOT EXISTS queue_only boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS issued_by_ticket bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS queue_fence bigint NOT NULL DEFAULT 0;
"""

# First for new rows only, and then for all without a lock that stops writes. An attempt at this
# revision that was interrupted may have left columns and constraint.
CHECK = """
ALTER TABLE campaigns DROP CONSTRAINT IF EXISTS campaigns_queue_only;
ALTER TABLE campaigns ADD CONSTRAINT campaigns_queue_only
    CHECK (NOT queue_only OR issued = issued_by_ticket) NOT VALID;
"""

VALIDATE = """
ALTER TABLE campaigns VALIDATE CONSTRAINT campaigns_queue_only;
"""

RIGHTS = """
GRANT UPDATE (issued_by_ticket, queue_fence) ON campaigns TO tally_coupon_runtime;
"""


def upgrade() -> None:
    execute(COLUMNS, CHECK, RIGHTS)
    with op.get_context().autocommit_block():
        execute(VALIDATE)
