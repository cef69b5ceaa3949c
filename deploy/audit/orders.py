"""The order service's book: stock, orders, their sagas, and what was answered about them."""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import ANSWERS_KEPT, Check, Figure

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
    ),
    Figure(
        "I6",
        "{orders:,} orders ({paid:,} paid, {cancelled:,} cancelled, {expired:,} expired,"
        " {pending:,} pending, {moving:,} on their way)",
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
        """
SELECT count(*) AS sagas, count(*) FILTER (WHERE state = 'RESOLVED') AS resolved,
       count(*) FILTER (WHERE state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION')) AS live
  FROM sagas
""",
    ),
    Figure(
        "I8",
        "{answers:,} about orders",
        "SELECT count(*) AS answers FROM answers",
    ),
)

_STOCK = Check(
    "I4",
    "product",
    """
SELECT product_id::text AS key,
       format('product %s: %s', product_id, concat_ws(', ',
           CASE WHEN p.stocked IS NULL THEN 'is ordered and does not exist' END,
           CASE WHEN p.reserved + p.sold > p.stocked OR least(p.reserved, p.sold) < 0
                THEN format('%s stocked, %s reserved, %s sold', p.stocked, p.reserved, p.sold) END,
           CASE WHEN p.reserved <> coalesce(o.reserved, 0)
                THEN format('%s reserved, %s in unpaid orders',
                            p.reserved, coalesce(o.reserved, 0)) END,
           CASE WHEN p.sold <> coalesce(o.sold, 0)
                THEN format('%s sold, %s in paid orders', p.sold, coalesce(o.sold, 0)) END
       )) AS told
  FROM products AS p
  FULL JOIN (SELECT product_id,
                    sum(quantity) FILTER (WHERE state IN ('PENDING', 'PAYING')) AS reserved,
                    sum(quantity) FILTER (WHERE state IN ('PAID', 'CANCELLING')) AS sold
               FROM order_items JOIN orders USING (order_id) GROUP BY product_id) AS o
 USING (product_id)
 WHERE p.stocked IS NULL OR p.reserved + p.sold > p.stocked OR least(p.reserved, p.sold) < 0
    OR p.reserved <> coalesce(o.reserved, 0) OR p.sold <> coalesce(o.sold, 0)
""",
)

# A cancelled order that had been paid keeps its amounts; one that had not has none.
_AMOUNTS = Check(
    "I6",
    "amounts of the order",
    """
SELECT o.order_id::text AS key,
       format('order %s (%s): lines %s, subtotal %s, discount %s, by balance %s, by gateway %s%s',
              o.order_id, o.state, coalesce(i.amount_minor, 0), o.subtotal_minor, o.discount_minor,
              o.paid_by_balance_minor, o.paid_by_gateway_minor,
              CASE WHEN (o.payment_id IS NULL) <> (o.paid_by_gateway_minor = 0)
                   THEN format(', payment %s', coalesce(o.payment_id, 'none')) END) AS told
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
""",
)

_MOVES = Check(
    "I6",
    "moves of the order",
    """
SELECT o.order_id::text AS key,
       format('order %s is %s, with %s', o.order_id, o.state, concat_ws(', ',
           format('%s payments completed', s.paid), format('%s under way', s.paying),
           format('%s cancellations completed', s.cancelled),
           format('%s under way', s.cancelling))) AS told
  FROM orders AS o
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE kind = 'PAY_ORDER' AND done) AS paid,
              count(*) FILTER (WHERE kind = 'PAY_ORDER' AND live) AS paying,
              count(*) FILTER (WHERE kind = 'CANCEL_ORDER' AND done) AS cancelled,
              count(*) FILTER (WHERE kind = 'CANCEL_ORDER' AND live) AS cancelling
         FROM (SELECT kind, state = 'COMPLETED' OR state = 'RESOLVED' AND failure IS NULL AS done,
                      state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION') AS live
                 FROM sagas WHERE sagas.order_id = o.order_id) AS saga) AS s
 WHERE (s.paid, s.paying, s.cancelled, s.cancelling) NOT IN (
       SELECT paid, paying, cancelled, cancelling
         FROM (VALUES ('PENDING', 0, 0, 0, 0), ('PAYING', 0, 1, 0, 0), ('PAID', 1, 0, 0, 0),
                      ('CANCELLING', 1, 0, 0, 1), ('CANCELLED', 0, 0, 0, 0),
                      ('CANCELLED', 1, 0, 1, 0), ('EXPIRED', 0, 0, 0, 0))
              AS legal (state, paid, paying, cancelled, cancelling)
        WHERE legal.state = o.state)
""",
)

_STEPS = Check(
    "I6",
    "ended saga",
    """
SELECT s.saga_id::text AS key,
       format('saga %s (%s) of order %s: %s', s.saga_id, s.state, s.order_id, CASE
           WHEN o.order_id IS NULL THEN 'there is no such order'
           ELSE 'steps ' || (SELECT string_agg(
               format('%s %s', step ->> 'name', step ->> 'state'), ', ')
               FROM jsonb_array_elements(s.steps) AS step) END) AS told
  FROM sagas AS s
  LEFT JOIN orders AS o ON o.order_id = s.order_id AND o.user_id = s.user_id
 WHERE o.order_id IS NULL
    OR EXISTS (SELECT FROM jsonb_array_elements(s.steps) AS step
                WHERE CASE s.state
                      WHEN 'COMPLETED' THEN step ->> 'state' NOT IN ('DONE', 'SKIPPED')
                      WHEN 'COMPENSATED'
                      THEN step ->> 'state' NOT IN ('PENDING', 'SKIPPED', 'COMPENSATED')
                      ELSE false END)
""",
)

# While the database was down nobody could end anything: time counts from its start.
_OVERDUE = Check(
    "I6",
    "overdue",
    """
SELECT key, told
  FROM (SELECT 'order ' || order_id AS key,
               format('order %s is %s since %s', order_id, state, update_time) AS told,
               CASE state WHEN 'PENDING' THEN expire_time ELSE update_time END AS due_time
          FROM orders WHERE state IN ('PENDING', 'PAYING', 'CANCELLING')
         UNION ALL
        SELECT 'saga ' || saga_id,
               format('saga %s of order %s, begun %s, is %s: %s', saga_id, order_id, create_time,
                      state, coalesce(nullif(last_error, ''), 'no error')),
               create_time
          FROM sagas WHERE state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION')) AS open
 WHERE greatest(due_time, pg_postmaster_start_time())
       < now() - make_interval(secs => CAST(:overdue_s AS double precision))
""",
    certain=False,
)

_CREATE_ANSWERED = Check(
    "I8",
    "answer about a new order",
    """
SELECT concat_ws(' ', a.scope, a.request_id) AS key,
       format('CreateOrder %s of %s: answered with order %s, which %s', a.request_id, a.scope,
              a.told ->> 'order_id', CASE WHEN o.order_id IS NULL THEN 'does not exist'
              ELSE 'is of ' || o.user_id || ' under ' || o.request_id END) AS told
  FROM (SELECT *, body::jsonb AS told FROM answers WHERE method = 'CreateOrder') AS a
  LEFT JOIN orders AS o ON o.order_id::text = a.told ->> 'order_id'
 WHERE o.order_id IS NULL OR o.user_id <> a.scope OR o.request_id <> a.request_id
""",
)

_CREATED = Check(
    "I8",
    "order",
    f"""
SELECT o.order_id::text AS key,
       format('order %s of %s: exists, and its request %s is not answered', o.order_id, o.user_id,
              o.request_id) AS told
  FROM orders AS o
  LEFT JOIN answers AS a
    ON a.method = 'CreateOrder' AND a.scope = o.user_id AND a.request_id = o.request_id
 WHERE a.state IS NULL AND o.create_time > now() - {ANSWERS_KEPT}
""",  # noqa: S608 - a constant
)

_PAY_ANSWERED = Check(
    "I8",
    "answer about paying",
    """
SELECT concat_ws(' ', a.scope, a.request_id) AS key,
       format('PayOrder %s of %s: %s, and its saga %s', a.request_id, a.scope, lower(a.state),
              coalesce(s.saga_id || ' is ' || s.state, 'does not exist')) AS told
  FROM answers AS a
  LEFT JOIN sagas AS s
    ON s.kind = 'PAY_ORDER' AND s.user_id = a.scope AND s.request_id = a.request_id
 WHERE a.method = 'PayOrder'
   AND CASE a.state
       WHEN 'ANSWERED' THEN s.saga_id IS NULL OR s.failure IS NOT NULL
                            OR s.state NOT IN ('COMPLETED', 'RESOLVED')
       WHEN 'REFUSED' THEN s.saga_id IS NULL OR s.state NOT IN ('COMPENSATED', 'RESOLVED')
       ELSE true END
""",
)

_PAID = Check(
    "I8",
    "attempt to pay",
    f"""
SELECT s.saga_id::text AS key,
       format('saga %s of order %s: %s, and its request %s of %s is %s', s.saga_id, s.order_id,
              lower(s.state), s.request_id, s.user_id, coalesce(lower(a.state), 'not answered')
       ) AS told
  FROM sagas AS s
  LEFT JOIN answers AS a
    ON a.method = 'PayOrder' AND a.scope = s.user_id AND a.request_id = s.request_id
 WHERE s.kind = 'PAY_ORDER'
   AND CASE WHEN s.state IN ('COMPLETED', 'COMPENSATED', 'RESOLVED')
            THEN a.state IS NULL AND s.update_time > now() - {ANSWERS_KEPT}
            ELSE a.state IS NOT NULL END
""",  # noqa: S608 - a constant
)

_CANCEL_ANSWERED = Check(
    "I8",
    "answer about cancelling",
    """
SELECT concat_ws(' ', a.scope, a.request_id) AS key,
       format('CancelOrder %s of %s: answered, and order %s is %s', a.request_id, a.scope,
              a.told ->> 'order_id', coalesce(o.state, 'nowhere')) AS told
  FROM (SELECT *, body::jsonb AS told FROM answers WHERE method = 'CancelOrder') AS a
  LEFT JOIN orders AS o ON o.order_id::text = a.told ->> 'order_id'
 WHERE o.order_id IS NULL OR o.user_id <> a.scope OR o.state NOT IN ('CANCELLING', 'CANCELLED')
""",
)

CHECKS: Final = (
    _STOCK,
    _AMOUNTS,
    _MOVES,
    _STEPS,
    _OVERDUE,
    _CREATE_ANSWERED,
    _CREATED,
    _PAY_ANSWERED,
    _PAID,
    _CANCEL_ANSWERED,
)
