"""Checks of the order service's seats, against products, orders and the stock journal."""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import Check, Figure
from deploy.audit.units import PRODUCT

SEAT_FIGURE: Final = Figure(
    "I4",
    "{seats:,} seats of {products:,} products = {free:,} free + {reserved:,} reserved"
    " + {sold:,} sold",
    """
SELECT count(*) AS seats, count(DISTINCT product_id) AS products,
       count(*) FILTER (WHERE state = 'FREE') AS free,
       count(*) FILTER (WHERE state = 'RESERVED') AS reserved,
       count(*) FILTER (WHERE state = 'SOLD') AS sold
  FROM seats
""",
    PRODUCT,
)

SEAT_CHECKS: Final = (
    # Each change of a seated product changes some of its seats, to the product's version.
    Check(
        "I4",
        "seats of the product",
        """
SELECT product_id::text AS key,
       format('product %s: ', product_id) || nullif(concat_ws(', ',
           CASE WHEN p.seats IS NULL THEN 'has seats and does not exist' END,
           CASE WHEN p.seats <> coalesce(s.seats, 0)
                THEN format('%s seats, and %s exist', p.seats, coalesce(s.seats, 0)) END,
           CASE WHEN p.seats NOT IN (0, p.stocked)
                THEN format('%s seats of %s stocked', p.seats, p.stocked) END,
           CASE WHEN p.reserved <> s.reserved OR p.sold <> s.sold
                THEN format('%s reserved and %s sold, of its seats %s and %s', p.reserved, p.sold,
                            s.reserved, s.sold) END,
           CASE WHEN p.version <> s.version
                THEN format('version %s, of its seats %s', p.version, s.version) END,
           CASE WHEN p.seats > 0 AND p.seats_version <> p.version
                THEN format('version %s, last written with seats at %s', p.version, p.seats_version)
                END
       ), '') AS difference
  FROM products AS p
  FULL JOIN (SELECT product_id, count(*) AS seats, max(version) AS version,
                    count(*) FILTER (WHERE state = 'RESERVED') AS reserved,
                    count(*) FILTER (WHERE state = 'SOLD') AS sold
               FROM seats GROUP BY product_id) AS s USING (product_id)
""",
        unit=PRODUCT,
    ),
    Check(
        "I4",
        "seat and its order",
        """
SELECT product_id || ' ' || label AS key,
       format('seat %s of product %s is %s%s, and %s has it', label, product_id,
              coalesce(s.state, 'missing'), ' by order ' || s.order_id,
              CASE WHEN o.order_id IS NULL THEN 'no order'
                   ELSE format('order %s (%s)', o.order_id, o.state) END) AS difference
  FROM seats AS s
  FULL JOIN (SELECT product_id, label, order_id, state,
                    CASE WHEN state IN ('PENDING', 'PAYING') THEN 'RESERVED'
                         WHEN state IN ('PAID', 'CANCELLING') THEN 'SOLD' END AS of_seat
               FROM order_seats LEFT JOIN orders USING (order_id) WHERE live) AS o
 USING (product_id, label)
 WHERE (s.state, s.order_id) IS DISTINCT FROM (coalesce(o.of_seat, 'FREE'), o.order_id)
    OR o.order_id IS NOT NULL AND o.of_seat IS NULL
""",
        unit=PRODUCT,
    ),
    # An order that has ended still names its seats, and has none of them.
    Check(
        "I6",
        "seats of the line",
        """
SELECT concat_ws(' ', order_id, product_id) AS key,
       format('order %s (%s): %s of product %s%s, with %s seats named and %s had', order_id,
              o.state, coalesce(i.quantity, 0), product_id,
              CASE WHEN i.seated THEN ', seated' END, coalesce(s.named, 0), coalesce(s.live, 0)
       ) AS difference
  FROM order_items AS i
  FULL JOIN (SELECT order_id, product_id, count(*) AS named, count(*) FILTER (WHERE live) AS live
               FROM order_seats GROUP BY order_id, product_id) AS s USING (order_id, product_id)
  LEFT JOIN orders AS o USING (order_id)
  LEFT JOIN products AS p USING (product_id)
 WHERE i.order_id IS NULL OR i.seated <> (p.seats > 0)
    OR coalesce(s.named, 0) <> CASE WHEN i.seated THEN i.quantity ELSE 0 END
    OR coalesce(s.live, 0) <> CASE WHEN i.seated AND o.state NOT IN ('CANCELLED', 'EXPIRED')
                                   THEN i.quantity ELSE 0 END
""",
    ),
    Check(
        "I4",
        "seats of the stocking",
        """
SELECT concat_ws(' ', product_id, request_id) AS key,
       format('product %s: %s seats stocked by %s, and %s exist', product_id,
              coalesce(e.quantity, 0), request_id, coalesce(s.seats, 0)) AS difference
  FROM (SELECT * FROM stock_entries WHERE kind = 'SEATED') AS e
  FULL JOIN (SELECT product_id, request_id, count(*) AS seats
               FROM seats GROUP BY product_id, request_id) AS s USING (product_id, request_id)
 WHERE e.quantity IS DISTINCT FROM s.seats
""",
        unit=PRODUCT,
    ),
)
