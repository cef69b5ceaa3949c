"""Whether a line of an order has seats: only for those are they read.

Revision ID: order_0008
"""

from __future__ import annotations

from common.db.migrations import execute

revision = "order_0008"
down_revision = "order_0007"

COLUMN = """
ALTER TABLE order_items ADD COLUMN seated boolean NOT NULL DEFAULT false;
"""


def upgrade() -> None:
    execute(COLUMN)
