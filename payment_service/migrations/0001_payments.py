"""Payments and the answers.

Revision ID: payment_0001
"""

from __future__ import annotations

from common.db import idempotency
from common.db.migrations import execute

revision = "payment_0001"
down_revision = None

# A row is open while something is left to do at the gateway: its outcome is not known, or what was
# charged is to be given back. Then, and only then, it has a time at which it is taken up.
TABLES = """
CREATE TABLE payments (
    payment_id             uuid NOT NULL,
    payment_key            text NOT NULL,
    user_id                text NOT NULL,
    request_id             text NOT NULL,
    order_id               text NOT NULL,
    currency_code          text NOT NULL,
    amount_minor           bigint NOT NULL,
    gateway                text NOT NULL,
    state                  text NOT NULL,
    gateway_transaction_id text,
    failure_code           text,
    cancel_reason          text,
    cancel_request_id      text,
    holder                 uuid,
    due_time               timestamptz,
    tries                  integer NOT NULL,
    version                bigint NOT NULL,
    create_time            timestamptz NOT NULL,
    update_time            timestamptz NOT NULL,
    CONSTRAINT payments_pkey PRIMARY KEY (payment_id),
    CONSTRAINT payments_key_once UNIQUE (payment_key),
    CONSTRAINT payments_request_once UNIQUE (user_id, request_id),
    CONSTRAINT payments_amount_positive CHECK (amount_minor > 0),
    CONSTRAINT payments_outcome CHECK (
        CASE state WHEN 'PENDING' THEN gateway_transaction_id IS NULL AND failure_code IS NULL
                   WHEN 'UNKNOWN' THEN gateway_transaction_id IS NULL AND failure_code IS NULL
                   WHEN 'CONFIRMED' THEN gateway_transaction_id IS NOT NULL AND failure_code IS NULL
                   WHEN 'CANCELLED' THEN gateway_transaction_id IS NOT NULL AND failure_code IS NULL
                   WHEN 'DECLINED' THEN gateway_transaction_id IS NULL AND failure_code IS NOT NULL
                   ELSE false END),
    CONSTRAINT payments_cancel_has_reason
        CHECK (cancel_request_id IS NULL OR cancel_reason IS NOT NULL),
    CONSTRAINT payments_due_while_open CHECK (
        (due_time IS NOT NULL) = (state IN ('PENDING', 'UNKNOWN')
                                  OR (state = 'CONFIRMED' AND cancel_reason IS NOT NULL))),
    CONSTRAINT payments_held_while_open CHECK (holder IS NULL OR due_time IS NOT NULL)
) WITH (fillfactor = 70);

CREATE INDEX payments_newest ON payments (user_id, create_time DESC, payment_id DESC);
CREATE UNIQUE INDEX payments_cancel_request_once ON payments (user_id, cancel_request_id)
    WHERE cancel_request_id IS NOT NULL;
CREATE INDEX payments_due ON payments (due_time) WHERE due_time IS NOT NULL;
"""

# DELETE is for a claim whose call provably never left: its key is free again.
RIGHTS = """
GRANT SELECT, INSERT, UPDATE, DELETE ON payments TO tally_payment_runtime;
GRANT SELECT, INSERT, UPDATE, DELETE ON answers TO tally_payment_runtime;
GRANT SELECT ON alembic_version TO tally_payment_runtime;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO tally_payment_audit;
"""


def upgrade() -> None:
    execute(TABLES, idempotency.DDL, RIGHTS)
