"""Seats, and the seats of orders.

Revision ID: order_0006

``order_seats`` says which seats an order names, permanently; ``live`` says whether it still has
them. A seat is live in one order at most: that is the last guard of a sale.

A replica of the earlier release does not know seats, and fails to order or move a seated product
(``order_0007``): add seats when no such replica is left.

An attempt at this revision that was interrupted may have left any of its changes.
"""

from __future__ import annotations

from alembic import op

from common.db.migrations import execute

revision = "order_0006"
down_revision = "order_0005"

TABLES = """
CREATE TABLE IF NOT EXISTS seats (
    product_id uuid NOT NULL,
    label      text COLLATE "C" NOT NULL,
    state      text NOT NULL,
    order_id   uuid,
    version    bigint NOT NULL,
    request_id text NOT NULL,
    CONSTRAINT seats_pkey PRIMARY KEY (product_id, label),
    CONSTRAINT seats_state CHECK (state IN ('FREE', 'RESERVED', 'SOLD')),
    CONSTRAINT seats_order_unless_free CHECK ((order_id IS NULL) = (state = 'FREE'))
) WITH (fillfactor = 70);
CREATE INDEX IF NOT EXISTS seats_changed ON seats (product_id, version);

CREATE TABLE IF NOT EXISTS order_seats (
    order_id   uuid NOT NULL,
    product_id uuid NOT NULL,
    label      text COLLATE "C" NOT NULL,
    live       boolean NOT NULL,
    CONSTRAINT order_seats_pkey PRIMARY KEY (order_id, product_id, label)
);
CREATE UNIQUE INDEX IF NOT EXISTS order_seats_live_once
    ON order_seats (product_id, label) WHERE live;
"""

# The runtime role can neither remove seats nor change which seats an order named.
RIGHTS = """
GRANT SELECT, INSERT ON seats, order_seats TO tally_order_runtime;
GRANT UPDATE (state, order_id, version) ON seats TO tally_order_runtime;
GRANT UPDATE (live) ON order_seats TO tally_order_runtime;
GRANT SELECT ON seats, order_seats TO tally_order_audit;
"""

# First for new rows only, and then for all without a lock that stops writes.
KIND = """
ALTER TABLE stock_entries DROP CONSTRAINT IF EXISTS stock_entries_kind;
ALTER TABLE stock_entries ADD CONSTRAINT stock_entries_kind
    CHECK (kind IN ('CREATED', 'RESTOCKED', 'OPENING', 'SEATED')) NOT VALID;
"""

VALIDATE = """
ALTER TABLE stock_entries VALIDATE CONSTRAINT stock_entries_kind;
"""


def upgrade() -> None:
    execute(TABLES, RIGHTS, KIND)
    with op.get_context().autocommit_block():
        execute(VALIDATE)
