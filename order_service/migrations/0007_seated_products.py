"""The number of a product's seats.

Revision ID: order_0007

All that was ever stocked of a seated product are its seats. The constraint also keeps a replica of
the earlier release from restocking one.
"""

from __future__ import annotations

from alembic import op

from common.db.migrations import execute

revision = "order_0007"
down_revision = "order_0006"

COLUMN = """
ALTER TABLE products ADD COLUMN IF NOT EXISTS seats bigint NOT NULL DEFAULT 0;
"""

# First for new rows only, and then for all without a lock that stops writes. An attempt at this
# revision that was interrupted may have left column and constraint.
CHECK = """
ALTER TABLE products DROP CONSTRAINT IF EXISTS products_seats_all_or_none;
ALTER TABLE products ADD CONSTRAINT products_seats_all_or_none
    CHECK (seats IN (0, stocked) AND seats >= 0) NOT VALID;
"""

VALIDATE = """
ALTER TABLE products VALIDATE CONSTRAINT products_seats_all_or_none;
"""


def upgrade() -> None:
    execute(COLUMN, CHECK)
    with op.get_context().autocommit_block():
        execute(VALIDATE)
