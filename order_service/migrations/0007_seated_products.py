"""The number of a product's seats, and the version of the product that they belong to.

Revision ID: order_0007

All that was ever stocked of a seated product are its seats. A replica of the earlier release knows
no seats, and its sweeps run without any client: it would move the counts of a seated product, and
the states of orders, and leave the seats behind. It raises ``version`` alone, so the constraint
refuses its writes, and a replica of this release makes the moves.
"""

from __future__ import annotations

from alembic import op

from common.db.migrations import execute

revision = "order_0007"
down_revision = "order_0006"

COLUMNS = """
ALTER TABLE products
    ADD COLUMN IF NOT EXISTS seats bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS seats_version bigint NOT NULL DEFAULT 0;
"""

# First for new rows only, and then for all without a lock that stops writes. An attempt at this
# revision that was interrupted may have left columns and constraints.
CHECKS = """
ALTER TABLE products DROP CONSTRAINT IF EXISTS products_seats_all_or_none;
ALTER TABLE products ADD CONSTRAINT products_seats_all_or_none
    CHECK (seats IN (0, stocked) AND seats >= 0) NOT VALID;
ALTER TABLE products DROP CONSTRAINT IF EXISTS products_seats_version;
ALTER TABLE products ADD CONSTRAINT products_seats_version
    CHECK (seats = 0 OR seats_version = version) NOT VALID;
"""

VALIDATE = """
ALTER TABLE products VALIDATE CONSTRAINT products_seats_all_or_none;
ALTER TABLE products VALIDATE CONSTRAINT products_seats_version;
"""


def upgrade() -> None:
    execute(COLUMNS, CHECKS)
    with op.get_context().autocommit_block():
        execute(VALIDATE)
