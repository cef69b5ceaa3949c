"""An OPENING entry in the stock journal for each product that is older than the journal.

Revision ID: order_0005

It reads all products in one snapshot and locks nothing: each stocking since the revision before has
its entry, in the same transaction as the product's row. So the snapshot has both or neither.
"""

from __future__ import annotations

from common.db.migrations import execute

revision = "order_0005"
down_revision = "order_0004"

# Neither: the product's stock is the opening, and entries that are committed meanwhile follow it.
# Both: the first entry was a restock by a replica of the earlier release, which has no quantity and
# so counts all that the product had; the opening before it is empty.
OPENING = """
INSERT INTO stock_entries (kind, request_id, product_id, quantity, stocked_after, product_version,
                           create_time)
SELECT 'OPENING', p.product_id::text, p.product_id, opening.stocked, opening.stocked,
       CASE WHEN first.kind IS NULL THEN p.version ELSE 0 END,
       CASE WHEN first.kind IS NULL THEN p.update_time ELSE p.create_time END
  FROM products AS p
  LEFT JOIN LATERAL (SELECT kind FROM stock_entries AS entry
                      WHERE entry.product_id = p.product_id
                      ORDER BY entry.product_version LIMIT 1) AS first ON true
 CROSS JOIN LATERAL (SELECT CASE WHEN first.kind IS NULL THEN p.stocked ELSE 0 END AS stocked)
            AS opening
 WHERE coalesce(first.kind, 'RESTOCKED') = 'RESTOCKED'
    ON CONFLICT DO NOTHING;
"""


def upgrade() -> None:
    execute(OPENING)
