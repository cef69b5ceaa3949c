"""An index of the refunds that the gateway refused: figures count them.

Revision ID: payment_0004
"""

from __future__ import annotations

from common.db.migrations import create_index

revision = "payment_0004"
down_revision = "payment_0003"


def upgrade() -> None:
    create_index(
        "payments_refund_refused",
        "payments (cancel_request_time) "
        "WHERE state = 'CONFIRMED' AND refund_refusal_code IS NOT NULL",
    )
