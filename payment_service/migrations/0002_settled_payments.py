"""Cancellations with a time, refused refunds, refunds outside Tally, and reads by request_id.

A replica of the earlier release writes payments without the new columns: each has a default that
its constraints accept. The revision can be run again if it ended in the middle.

Revision ID: payment_0002
"""

from __future__ import annotations

from alembic import op

from common.db.migrations import execute

revision = "payment_0002"
down_revision = "payment_0001"

# Neither a constant default nor a constraint that is NOT VALID reads the table: the lock is short.
# now() in ADD COLUMN is evaluated once, for all existing rows. The default of check_time is for new
# rows of the earlier release only: existing rows are not checked.
COLUMNS = """
ALTER TABLE payments
    ADD COLUMN IF NOT EXISTS refunded_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS refunded_outside_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS cancel_request_time timestamptz,
    ADD COLUMN IF NOT EXISTS refund_refusal_code text,
    ADD COLUMN IF NOT EXISTS resolution_reason text,
    ADD COLUMN IF NOT EXISTS unsupported_status text,
    ADD COLUMN IF NOT EXISTS confirm_time timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS check_time timestamptz,
    ALTER COLUMN check_time SET DEFAULT now() + interval '1 day',
    DROP CONSTRAINT IF EXISTS payments_due_while_open,
    DROP CONSTRAINT IF EXISTS payments_refunded_at_most_once,
    DROP CONSTRAINT IF EXISTS payments_refund_refused_while_confirmed,
    ADD CONSTRAINT payments_due_while_open CHECK (
        (due_time IS NOT NULL) = (state IN ('PENDING', 'UNKNOWN')
                                  OR (state = 'CONFIRMED' AND cancel_reason IS NOT NULL
                                      AND refund_refusal_code IS NULL))) NOT VALID,
    ADD CONSTRAINT payments_refunded_at_most_once CHECK (
        refunded_outside_minor >= 0 AND refunded_outside_minor <= refunded_minor
        AND refunded_minor <= CASE state WHEN 'CANCELLED' THEN amount_minor
                                         WHEN 'CONFIRMED' THEN amount_minor - 1
                                         ELSE 0 END) NOT VALID,
    ADD CONSTRAINT payments_refund_refused_while_confirmed CHECK (
        refund_refusal_code IS NULL
        OR (state IN ('CONFIRMED', 'CANCELLED') AND cancel_reason IS NOT NULL)) NOT VALID;
"""

# Each statement by itself: none of them blocks writes. An index that was not finished is dropped.
AFTERWARDS = """
ALTER TABLE payments
    VALIDATE CONSTRAINT payments_due_while_open,
    VALIDATE CONSTRAINT payments_refunded_at_most_once,
    VALIDATE CONSTRAINT payments_refund_refused_while_confirmed;
DROP INDEX CONCURRENTLY IF EXISTS payments_by_request;
CREATE INDEX CONCURRENTLY payments_by_request ON payments (request_id);
DROP INDEX CONCURRENTLY IF EXISTS payments_to_check;
CREATE INDEX CONCURRENTLY payments_to_check ON payments (check_time)
    WHERE check_time IS NOT NULL;
"""


def upgrade() -> None:
    execute(COLUMNS)
    with op.get_context().autocommit_block():
        execute(AFTERWARDS)
