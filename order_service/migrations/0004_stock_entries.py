"""The stock journal, and the heartbeat.

Revision ID: order_0004

``stock_entries`` has one row for each change of ``products.stocked``, permanently: the sum of a
product's entries is what was ever stocked of it. Products that exist get an OPENING entry by the
next revision.

A replica of the earlier release creates and restocks products without entries as long as it runs.
Its stored answer has all that an entry needs, so the trigger on ``answers`` writes the entry in the
same transaction. Only the quantity is not in the answer, if several restocks of a product are in
one batch: it stays NULL, and is the difference to ``stocked_after`` of the entry before. A replica
of this release writes the entry before the answer, and the trigger finds it. A later revision can
drop the trigger when no replica of the earlier release is left.
"""

from __future__ import annotations

from alembic import op

from common.db import heartbeat
from common.db.migrations import execute

revision = "order_0004"
down_revision = "order_0003"

TABLE = """
CREATE TABLE stock_entries (
    kind            text NOT NULL,
    request_id      text NOT NULL,
    product_id      uuid NOT NULL,
    quantity        bigint,
    stocked_after   bigint NOT NULL,
    product_version bigint NOT NULL,
    create_time     timestamptz NOT NULL,
    CONSTRAINT stock_entries_pkey PRIMARY KEY (kind, request_id),
    CONSTRAINT stock_entries_version_once UNIQUE (product_id, product_version),
    CONSTRAINT stock_entries_kind CHECK (kind IN ('CREATED', 'RESTOCKED', 'OPENING')),
    CONSTRAINT stock_entries_quantity_not_negative CHECK (quantity >= 0 AND stocked_after >= 0)
);
"""

FUNCTION = """
CREATE FUNCTION stock_entries_of_earlier_release() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    product  jsonb := NEW.body::jsonb;
    new_kind text := CASE NEW.method WHEN 'CreateProduct' THEN 'CREATED' ELSE 'RESTOCKED' END;
BEGIN
    IF NOT EXISTS (SELECT FROM stock_entries
                    WHERE kind = new_kind AND request_id = NEW.request_id
                      AND product_id = (product ->> 'product_id')::uuid
                      AND product_version = (product ->> 'version')::bigint) THEN
        INSERT INTO stock_entries (kind, request_id, product_id, quantity, stocked_after,
                                   product_version, create_time)
        VALUES (new_kind, NEW.request_id, (product ->> 'product_id')::uuid,
                CASE new_kind WHEN 'CREATED' THEN (product ->> 'stocked')::bigint END,
                (product ->> 'stocked')::bigint, (product ->> 'version')::bigint,
                (product ->> 'update_time')::timestamptz);
    END IF;
    RETURN NULL;
END $$
"""
# It waits for the transactions that write answers, and keeps new ones waiting until the revision is
# committed: so it is the last statement, and the products are read by a revision of their own.
TRIGGER = """
CREATE TRIGGER answers_stock_entry AFTER INSERT ON answers FOR EACH ROW
    WHEN (NEW.method IN ('CreateProduct', 'RestockProduct') AND NEW.state = 'ANSWERED')
    EXECUTE FUNCTION stock_entries_of_earlier_release();
"""

# The runtime role can add entries, and neither change nor delete them.
RIGHTS = """
GRANT SELECT, INSERT ON stock_entries TO tally_order_runtime;
GRANT SELECT ON stock_entries TO tally_order_audit;
"""


def upgrade() -> None:
    execute(TABLE, RIGHTS, heartbeat.DDL, heartbeat.rights("order"))
    op.execute(FUNCTION)  # not split at its semicolons
    execute(TRIGGER)
