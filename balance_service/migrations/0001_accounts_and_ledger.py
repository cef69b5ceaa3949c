"""Accounts, their append-only ledger, and the answers.

Revision ID: balance_0001
"""

from __future__ import annotations

from common.db import idempotency
from common.db.migrations import execute

revision = "balance_0001"
down_revision = None

TABLES = """
CREATE TABLE accounts (
    user_id         text NOT NULL,
    currency_code   text NOT NULL,
    available_minor bigint NOT NULL,
    version         bigint NOT NULL,
    update_time     timestamptz NOT NULL,
    CONSTRAINT accounts_pkey PRIMARY KEY (user_id, currency_code),
    CONSTRAINT accounts_available_not_negative CHECK (available_minor >= 0),
    CONSTRAINT accounts_version_not_negative CHECK (version >= 0)
) WITH (fillfactor = 50);

CREATE TABLE ledger_entries (
    user_id             text NOT NULL,
    currency_code       text NOT NULL,
    sequence            bigint NOT NULL,
    entry_id            uuid NOT NULL,
    kind                text NOT NULL,
    amount_minor        bigint NOT NULL,
    balance_after_minor bigint NOT NULL,
    request_id          text NOT NULL,
    order_id            text,
    refund_of           text,
    create_time         timestamptz NOT NULL,
    CONSTRAINT ledger_entries_pkey PRIMARY KEY (user_id, currency_code, sequence),
    CONSTRAINT ledger_entries_request_once UNIQUE (user_id, request_id, kind),
    CONSTRAINT ledger_entries_sequence_from_1 CHECK (sequence >= 1),
    CONSTRAINT ledger_entries_balance_not_negative CHECK (balance_after_minor >= 0),
    CONSTRAINT ledger_entries_sign CHECK (
        CASE kind WHEN 'CHARGE' THEN amount_minor > 0
                  WHEN 'DEDUCT' THEN amount_minor < 0
                  WHEN 'REFUND' THEN amount_minor > 0
                  ELSE false END),
    CONSTRAINT ledger_entries_refund_names_deduction
        CHECK ((kind = 'REFUND') = (refund_of IS NOT NULL))
);

CREATE UNIQUE INDEX ledger_entries_refund_once
    ON ledger_entries (user_id, refund_of) WHERE refund_of IS NOT NULL;
"""

# The runtime role can neither change the schema nor rewrite history.
RIGHTS = """
GRANT SELECT, INSERT, UPDATE ON accounts TO tally_balance_runtime;
GRANT SELECT, INSERT ON ledger_entries TO tally_balance_runtime;
GRANT SELECT, INSERT, UPDATE, DELETE ON answers TO tally_balance_runtime;
GRANT SELECT ON alembic_version TO tally_balance_runtime;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO tally_balance_audit;
"""


def upgrade() -> None:
    execute(TABLES, idempotency.DDL, RIGHTS)
