"""Indexes of orders and sagas by time: the audit finds what was touched.

Revision ID: order_0010
"""

from __future__ import annotations

from common.db.migrations import create_index

revision = "order_0010"
down_revision = "order_0009"


def upgrade() -> None:
    create_index("orders_touched", "orders USING brin (update_time)")
    create_index("sagas_touched", "sagas USING brin (update_time)")
