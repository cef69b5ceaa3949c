"""The payment database: one row per payment_key for ever, and the idempotency records."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from common.db.heartbeat import heartbeat_table
from common.db.idempotency import idempotency_table

SCHEMA: Final = "payment_0005"
"""The oldest migration this release can serve on."""

KEY_ONCE: Final = "payments_key_once"
REQUEST_ONCE: Final = "payments_request_once"
CANCEL_REQUEST_ONCE: Final = "payments_cancel_request_once"
OUTCOME: Final = "payments_outcome"
DUE_WHILE_OPEN: Final = "payments_due_while_open"
REFUNDED_AT_MOST_ONCE: Final = "payments_refunded_at_most_once"
REFUND_REFUSED: Final = "payments_refund_refused_while_confirmed"

metadata = sa.MetaData()

payments = sa.Table(
    "payments",
    metadata,
    sa.Column("payment_id", sa.UUID(as_uuid=False), primary_key=True),
    sa.Column("payment_key", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("order_id", sa.Text, nullable=False),
    sa.Column("currency_code", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("gateway", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("gateway_transaction_id", sa.Text),
    sa.Column("failure_code", sa.Text),
    sa.Column("cancel_reason", sa.Text),
    sa.Column("cancel_request_id", sa.Text),
    sa.Column("holder", sa.UUID(as_uuid=False)),
    sa.Column("due_time", sa.DateTime(timezone=True)),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("refunded_minor", sa.BigInteger, nullable=False),
    sa.Column("refunded_outside_minor", sa.BigInteger, nullable=False),
    sa.Column("cancel_request_time", sa.DateTime(timezone=True)),
    sa.Column("refund_refusal_code", sa.Text),
    sa.Column("resolution_reason", sa.Text),
    sa.Column("unsupported_status", sa.Text),
    sa.Column("confirm_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("check_time", sa.DateTime(timezone=True)),
    # NULL if a release before payment_0005 wrote it.
    sa.Column("origin", sa.Text),
    sa.UniqueConstraint("payment_key", name=KEY_ONCE),
    sa.UniqueConstraint("user_id", "request_id", name=REQUEST_ONCE),
    sa.Index("payments_newest", "user_id", sa.text("create_time DESC"), sa.text("payment_id DESC")),
    sa.Index(
        CANCEL_REQUEST_ONCE,
        "user_id",
        "cancel_request_id",
        unique=True,
        postgresql_where=sa.text("cancel_request_id IS NOT NULL"),
    ),
    sa.Index("payments_due", "due_time", postgresql_where=sa.text("due_time IS NOT NULL")),
    sa.Index(
        "payments_refund_refused",
        "cancel_request_time",
        postgresql_where=sa.text("state = 'CONFIRMED' AND refund_refusal_code IS NOT NULL"),
    ),
    sa.Index("payments_by_request", "request_id"),
    sa.Index("payments_to_check", "check_time", postgresql_where=sa.text("check_time IS NOT NULL")),
    # For the audit: a summary of many pages. Updates stay within their pages (HOT).
    sa.Index("payments_touched", "update_time", postgresql_using="brin"),
)

heartbeat = heartbeat_table(metadata)

answers = idempotency_table(metadata)
