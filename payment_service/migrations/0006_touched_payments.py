"""An index of payments by time: the audit finds what was touched.

Revision ID: payment_0006
"""

from __future__ import annotations

from common.db.migrations import create_index

revision = "payment_0006"
down_revision = "payment_0005"


def upgrade() -> None:
    create_index("payments_touched", "payments USING brin (update_time)")
