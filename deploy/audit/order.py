"""Checks of the order service: stock and orders. Its sagas and answers have files of their own."""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import Check, Figure, ServiceChecks, answers_figure
from deploy.audit.claims import LIVE
from deploy.audit.order_answers import ANSWER_CHECKS
from deploy.audit.order_sagas import LISTINGS, SAGA_CHECKS
from deploy.audit.order_seats import SEAT_CHECKS, SEAT_FIGURE
from deploy.audit.units import ANSWERED_SINCE, PRODUCT, USER, Unit, answers_of_users
from tally.order.v1 import order_pb2

_STOCKING: Final = "method IN ('CreateProduct', 'RestockProduct', 'AddSeats')"
UNITS: Final = {
    USER: Unit(
        f"""
SELECT user_id FROM orders WHERE update_time >= :since
 UNION SELECT user_id FROM sagas WHERE update_time >= :since
 UNION SELECT scope FROM answers WHERE {ANSWERED_SINCE}
""",  # noqa: S608 - a constant
        {
            "orders": "user_id = ANY ({ids})",
            # The kinds are named for the index, which begins with them.
            "sagas": "kind IN ('PAY_ORDER', 'CANCEL_ORDER') AND user_id = ANY ({ids})",
            "order_items": "order_id IN (SELECT order_id FROM orders)",
            "order_seats": "order_id IN (SELECT order_id FROM orders)",
            "answers": answers_of_users(order_pb2.DESCRIPTOR),
        },
    ),
    # An order that was touched moves stock, whatever its product's row says.
    PRODUCT: Unit(
        f"""
SELECT product_id FROM products WHERE update_time >= :since
 UNION SELECT product_id FROM stock_entries WHERE create_time >= :since
 UNION SELECT product_id FROM order_items JOIN orders USING (order_id) WHERE update_time >= :since
 UNION SELECT CASE WHEN pg_input_is_valid(body::jsonb ->> 'product_id', 'uuid')
                   THEN (body::jsonb ->> 'product_id')::uuid END
         FROM answers WHERE {ANSWERED_SINCE} AND {_STOCKING}
""",  # noqa: S608 - a constant
        {
            "products": "product_id = ANY ({ids})",
            "stock_entries": "product_id = ANY ({ids})",
            "seats": "product_id = ANY ({ids})",
            # No index: it would cost every order more than this check does.
            "order_items": "product_id = ANY ({ids})",
            "order_seats": "product_id = ANY ({ids})",
            "answers": f"{_STOCKING} AND body::jsonb ->> 'product_id' = ANY ({{texts}})",
        },
        "uuid",
    ),
}

FIGURES: Final = (
    Figure(
        "I4",
        "{products:,} products, {stocked:,} stocked = {free:,} free + {reserved:,} reserved"
        " + {sold:,} sold",
        """
SELECT count(*) AS products, coalesce(sum(stocked), 0) AS stocked,
       coalesce(sum(stocked - reserved - sold), 0) AS free,
       coalesce(sum(reserved), 0) AS reserved, coalesce(sum(sold), 0) AS sold
  FROM products
""",
        PRODUCT,
    ),
    SEAT_FIGURE,
    Figure(
        "I6",
        "{orders:,} orders ({paid:,} paid, {cancelled:,} cancelled, {expired:,} expired,"
        " {pending:,} pending, {moving:,} being paid or cancelled)",
        """
SELECT count(*) AS orders, count(*) FILTER (WHERE state = 'PAID') AS paid,
       count(*) FILTER (WHERE state = 'CANCELLED') AS cancelled,
       count(*) FILTER (WHERE state = 'EXPIRED') AS expired,
       count(*) FILTER (WHERE state = 'PENDING') AS pending,
       count(*) FILTER (WHERE state IN ('PAYING', 'CANCELLING')) AS moving
  FROM orders
""",
    ),
    Figure(
        "I6",
        "{sagas:,} sagas ({live:,} not ended, {resolved:,} closed by a person)",
        f"""
SELECT count(*) AS sagas, count(*) FILTER (WHERE state IN ('RESOLVING', 'RESOLVED')) AS resolved,
       count(*) FILTER (WHERE state IN {LIVE}) AS live
  FROM sagas
""",  # noqa: S608 - a constant
    ),
    answers_figure("{answers:,} about orders"),
)

CHECKS: Final = (
    Check(
        "I4",
        "product",
        """
SELECT product_id::text AS key,
       format('product %s: ', product_id) || nullif(concat_ws(', ',
           CASE WHEN p.stocked IS NULL THEN 'is ordered and does not exist' END,
           CASE WHEN p.reserved + p.sold > p.stocked OR least(p.reserved, p.sold) < 0
                THEN format('%s stocked, %s reserved, %s sold', p.stocked, p.reserved, p.sold) END,
           CASE WHEN p.reserved <> coalesce(o.reserved, 0)
                THEN format('%s reserved, %s in unpaid orders',
                            p.reserved, coalesce(o.reserved, 0)) END,
           CASE WHEN p.sold <> coalesce(o.sold, 0)
                THEN format('%s sold, %s in paid orders', p.sold, coalesce(o.sold, 0)) END
       ), '') AS difference
  FROM products AS p
  FULL JOIN (SELECT product_id,
                    sum(quantity) FILTER (WHERE state IN ('PENDING', 'PAYING')) AS reserved,
                    sum(quantity) FILTER (WHERE state IN ('PAID', 'CANCELLING')) AS sold
               FROM order_items JOIN orders USING (order_id) GROUP BY product_id) AS o
 USING (product_id)
""",
        unit=PRODUCT,
    ),
    # An entry without a quantity was written by the database for a replica of an earlier release.
    Check(
        "I4",
        "stock journal",
        """
SELECT concat_ws(' ', product_id, lpad(product_version::text, 19, '0')) AS key,
       format('product %s: ', product_id) || CASE
           WHEN p.product_id IS NULL THEN 'is in the stock journal and does not exist'
           WHEN e.product_id IS NULL THEN format('%s stocked, and not in the journal', p.stocked)
           ELSE format('journal entry %s %s of version %s has %s stocked with %s added; before it'
                       ' %s, and the product has %s stocked', e.kind, e.request_id,
                       product_version, stocked_after, coalesce(quantity::text, 'not recorded'),
                       before, p.stocked) END AS difference
  FROM products AS p
  FULL JOIN (SELECT *, coalesce(lag(stocked_after) OVER entries, 0) AS before,
                    lag(create_time) OVER entries AS time_before,
                    row_number() OVER entries = 1 AS first,
                    lead(product_id) OVER entries IS NULL AS last
               FROM stock_entries
             WINDOW entries AS (PARTITION BY product_id ORDER BY product_version)) AS e
 USING (product_id)
 WHERE e.product_id IS NULL OR p.product_id IS NULL
    OR stocked_after - before <> quantity OR stocked_after < before
    OR first <> (e.kind IN ('CREATED', 'OPENING')) OR e.kind = 'CREATED' AND product_version <> 1
    OR last AND stocked_after <> p.stocked
    OR product_version > p.version OR e.create_time < time_before
    OR e.create_time > p.update_time OR p.create_time > p.update_time
""",
        unit=PRODUCT,
    ),
    # Name and price of a product never change.
    Check(
        "I6",
        "lines of the order",
        """
SELECT i.order_id || ' ' || i.product_id AS key,
       format('order %s: %s of product %s at %s', i.order_id, i.quantity, i.product_id,
              i.unit_price_minor) || CASE
           WHEN o.order_id IS NULL THEN ', and there is no such order'
           WHEN p.product_id IS NULL THEN ', and there is no such product'
           ELSE format(' %s, and the product costs %s %s', o.currency_code, p.price_minor,
                       p.currency_code) END AS difference
  FROM order_items AS i
  LEFT JOIN orders AS o USING (order_id)
  LEFT JOIN products AS p USING (product_id)
 WHERE (i.unit_price_minor, o.currency_code) IS DISTINCT FROM (p.price_minor, p.currency_code)
    OR i.quantity < 1 OR o.order_id IS NULL OR p.product_id IS NULL
""",
    ),
    Check(
        "I6",
        "times of the order",
        """
SELECT order_id::text AS key,
       format('order %s (%s): created %s, to be paid until %s, changed %s', order_id, state,
              create_time, expire_time, update_time) AS difference
  FROM orders
 WHERE update_time < create_time OR expire_time <= create_time
    OR state = 'EXPIRED' AND update_time < expire_time
""",
    ),
    # An order that was cancelled after it had been paid keeps its amounts; one cancelled before
    # has none.
    Check(
        "I6",
        "amounts of the order",
        """
SELECT o.order_id::text AS key,
       format('order %s (%s): lines %s, subtotal %s, discount %s, by balance %s, by gateway %s%s',
              o.order_id, o.state, coalesce(i.amount_minor, 0), o.subtotal_minor, o.discount_minor,
              o.paid_by_balance_minor, o.paid_by_gateway_minor,
              concat(CASE WHEN (o.payment_id IS NULL) <> (o.paid_by_gateway_minor = 0)
                          THEN format(', payment %s', coalesce(o.payment_id, 'none')) END,
                     ', coupon ' || o.coupon_id)) AS difference
  FROM (SELECT *, discount_minor + paid_by_balance_minor + paid_by_gateway_minor AS covered,
               EXISTS (SELECT FROM sagas AS s
                        WHERE s.order_id = orders.order_id AND s.kind = 'PAY_ORDER'
                          AND (s.state = 'COMPLETED' OR s.state = 'RESOLVED' AND s.failure IS NULL)
               ) AS was_paid
          FROM orders) AS o
  LEFT JOIN (SELECT order_id, sum(quantity::numeric * unit_price_minor) AS amount_minor
               FROM order_items GROUP BY order_id) AS i USING (order_id)
 WHERE o.subtotal_minor IS DISTINCT FROM i.amount_minor
    OR o.covered <> CASE
           WHEN o.state IN ('PAID', 'CANCELLING') OR o.state = 'CANCELLED' AND o.was_paid
           THEN o.subtotal_minor ELSE 0 END
    OR least(o.discount_minor, o.paid_by_balance_minor, o.paid_by_gateway_minor) < 0
    OR (o.payment_id IS NULL) <> (o.paid_by_gateway_minor = 0)
    OR o.coupon_id IS NOT NULL AND o.covered = 0 AND o.subtotal_minor > 0 AND o.state <> 'PAYING'
""",
    ),
    Check(
        "I6",
        "transitions of the order",
        f"""
SELECT o.order_id::text AS key,
       format('order %s is %s, with %s payments completed, %s under way, %s cancellations'
              ' completed, %s under way', o.order_id, o.state, s.paid, s.paying, s.cancelled,
              s.cancelling) AS difference
  FROM orders AS o
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE kind = 'PAY_ORDER' AND done) AS paid,
              count(*) FILTER (WHERE kind = 'PAY_ORDER' AND live) AS paying,
              count(*) FILTER (WHERE kind = 'CANCEL_ORDER' AND done) AS cancelled,
              count(*) FILTER (WHERE kind = 'CANCEL_ORDER' AND live) AS cancelling
         FROM (SELECT kind, state IN {LIVE} AS live,
                      state = 'COMPLETED' OR failure IS NULL AND state IN ('RESOLVING', 'RESOLVED')
                          AS done
                 FROM sagas WHERE sagas.order_id = o.order_id) AS saga) AS s
 WHERE (o.state, s.paid, s.paying, s.cancelled, s.cancelling) NOT IN (
       VALUES ('PENDING', 0, 0, 0, 0), ('PAYING', 0, 1, 0, 0), ('PAID', 1, 0, 0, 0),
              ('CANCELLING', 1, 0, 0, 1), ('CANCELLED', 0, 0, 0, 0), ('CANCELLED', 1, 0, 1, 0),
              ('EXPIRED', 0, 0, 0, 0))
""",  # noqa: S608 - a constant
    ),
    *SEAT_CHECKS,
    *SAGA_CHECKS,
    *ANSWER_CHECKS,
)

SERVICE: Final = ServiceChecks(CHECKS, FIGURES, UNITS, LISTINGS)
