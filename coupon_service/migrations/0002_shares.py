"""Campaigns whose quantity is split over several rows.

Revision ID: coupon_0002

A campaign with shares counts what it has issued in them, and 0 in its own row. A replica of the
earlier release knows no shares and would issue from that row: the constraint refuses its writes.

An attempt at this revision that was interrupted may have left any of its changes.
"""

from __future__ import annotations

from alembic import op

from common.db.migrations import execute

revision = "coupon_0002"
down_revision = "coupon_0001"

TABLE = """
CREATE TABLE IF NOT EXISTS campaign_shares (
    campaign_id  uuid NOT NULL,
    share        bigint NOT NULL,
    first_number bigint NOT NULL,
    quantity     bigint NOT NULL,
    issued       bigint NOT NULL,
    CONSTRAINT campaign_shares_pkey PRIMARY KEY (campaign_id, share),
    CONSTRAINT campaign_shares_issued_within_quantity CHECK (issued BETWEEN 0 AND quantity),
    CONSTRAINT campaign_shares_share CHECK (share BETWEEN 0 AND 63),
    CONSTRAINT campaign_shares_number_from_1 CHECK (first_number >= 1)
) WITH (fillfactor = 50);
"""

# The runtime role can neither remove shares nor change what belongs to them.
RIGHTS = """
GRANT SELECT, INSERT, UPDATE (issued) ON campaign_shares TO tally_coupon_runtime;
GRANT SELECT ON campaign_shares TO tally_coupon_audit;
"""

# First for new rows only, and then for all without a lock that stops writes.
COLUMN = """
ALTER TABLE campaigns ADD COLUMN IF NOT EXISTS shares bigint NOT NULL DEFAULT 1;
ALTER TABLE campaigns DROP CONSTRAINT IF EXISTS campaigns_shares;
ALTER TABLE campaigns ADD CONSTRAINT campaigns_shares
    CHECK (shares BETWEEN 1 AND 64) NOT VALID;
ALTER TABLE campaigns DROP CONSTRAINT IF EXISTS campaigns_shares_count_issued;
ALTER TABLE campaigns ADD CONSTRAINT campaigns_shares_count_issued
    CHECK (shares = 1 OR issued = 0) NOT VALID;
"""

VALIDATE = """
ALTER TABLE campaigns VALIDATE CONSTRAINT campaigns_shares;
ALTER TABLE campaigns VALIDATE CONSTRAINT campaigns_shares_count_issued;
"""


def upgrade() -> None:
    execute(TABLE, RIGHTS, COLUMN)
    with op.get_context().autocommit_block():
        execute(VALIDATE)
