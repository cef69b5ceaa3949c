"""An index of the open orders of a user: a limit counts them.

Revision ID: order_0009
"""

from __future__ import annotations

from common.db.migrations import create_index

revision = "order_0009"
down_revision = "order_0008"


def upgrade() -> None:
    create_index("orders_open_of_user", "orders (user_id) WHERE state IN ('PENDING', 'PAYING')")
