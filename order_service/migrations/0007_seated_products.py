"""The number of a product's seats.

Revision ID: order_0007

All that was ever stocked of a seated product are its seats. The constraint also keeps a replica of
the earlier release from restocking one.
"""

from __future__ import annotations

from common.db.migrations import execute

revision = "order_0007"
down_revision = "order_0006"

COLUMN = """
ALTER TABLE products
    ADD COLUMN seats bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT products_seats_all_or_none CHECK (seats IN (0, stocked) AND seats >= 0);
"""


def upgrade() -> None:
    execute(COLUMN)
