"""The balance database: accounts, ledger entries and the idempotency records (``answers``)."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from common.db.idempotency import idempotency_table

SCHEMA: Final = "balance_0004"
"""The oldest migration this release can serve on."""

AVAILABLE_NOT_NEGATIVE: Final = "accounts_available_not_negative"
AVAILABLE_WAS_CHARGED: Final = "accounts_available_was_charged"
SEQUENCE_ONCE: Final = "ledger_entries_pkey"
REQUEST_ONCE: Final = "ledger_entries_request_once"
REFUND_ONCE: Final = "ledger_entries_refund_once"

metadata = sa.MetaData()

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("currency_code", sa.Text, primary_key=True),
    sa.Column("available_minor", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
    # The sum of the charges up to that version. A replica of a release before balance_0002 raises
    # the version alone; the next charge here adds the entries in between.
    sa.Column("charged_minor", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("charged_at_version", sa.BigInteger, nullable=False, server_default="0"),
    sa.CheckConstraint("available_minor >= 0", name=AVAILABLE_NOT_NEGATIVE),
    sa.CheckConstraint(
        "charged_at_version < version OR available_minor <= charged_minor",
        name=AVAILABLE_WAS_CHARGED,
    ),
)

# No foreign key to accounts: it would look the account up once for every entry of a batch, and an
# entry is only ever written in the transaction that changes its account.
ledger_entries = sa.Table(
    "ledger_entries",
    metadata,
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("currency_code", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("entry_id", sa.UUID(as_uuid=False), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("balance_after_minor", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("order_id", sa.Text),
    sa.Column("refund_of", sa.Text),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    # Of a deduction; NULL also if a release before balance_0004 wrote it.
    sa.Column("origin", sa.Text),
    sa.UniqueConstraint("user_id", "request_id", "kind", name=REQUEST_ONCE),
    sa.Index(
        REFUND_ONCE,
        "user_id",
        "refund_of",
        unique=True,
        postgresql_where=sa.text("refund_of IS NOT NULL"),
    ),
    # For the audit: a summary of many pages, which an insert rarely changes.
    sa.Index("ledger_entries_touched", "create_time", postgresql_using="brin"),
)

answers = idempotency_table(metadata)
