"""Checks of the order service: stock, orders, their sagas, and the stored answers."""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import ANSWERS_KEPT, Check, Figure, answers_figure

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
        "{sagas:,} sagas ({live:,} not ended, {resolved:,} closed by an operator)",
        """
SELECT count(*) AS sagas, count(*) FILTER (WHERE state = 'RESOLVED') AS resolved,
       count(*) FILTER (WHERE state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION')) AS live
  FROM sagas
""",
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
              CASE WHEN (o.payment_id IS NULL) <> (o.paid_by_gateway_minor = 0)
                   THEN format(', payment %s', coalesce(o.payment_id, 'none')) END) AS difference
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
    ),
    Check(
        "I6",
        "transitions of the order",
        """
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
         FROM (SELECT kind, state = 'COMPLETED' OR state = 'RESOLVED' AND failure IS NULL AS done,
                      state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION') AS live
                 FROM sagas WHERE sagas.order_id = o.order_id) AS saga) AS s
 WHERE (o.state, s.paid, s.paying, s.cancelled, s.cancelling) NOT IN (
       VALUES ('PENDING', 0, 0, 0, 0), ('PAYING', 0, 1, 0, 0), ('PAID', 1, 0, 0, 0),
              ('CANCELLING', 1, 0, 0, 1), ('CANCELLED', 0, 0, 0, 0), ('CANCELLED', 1, 0, 1, 0),
              ('EXPIRED', 0, 0, 0, 0))
""",
    ),
    # The saga's create_time is the time that was compared with expire_time when it began.
    Check(
        "I6",
        "attempt after the order's expiry",
        """
SELECT s.saga_id::text AS key,
       format('order %s, to be paid until %s: saga %s began to pay it at %s', o.order_id,
              o.expire_time, s.saga_id, s.create_time) AS difference
  FROM sagas AS s
  JOIN orders AS o USING (order_id)
 WHERE s.kind = 'PAY_ORDER' AND s.create_time >= o.expire_time
""",
    ),
    Check(
        "I6",
        "ended saga",
        """
SELECT s.saga_id::text AS key,
       format('saga %s (%s) of order %s: %s', s.saga_id, s.state, s.order_id, CASE
           WHEN o.order_id IS NULL THEN 'there is no such order'
           ELSE 'steps ' || (SELECT string_agg(
               format('%s %s', step ->> 'name', step ->> 'state'), ', ')
               FROM jsonb_array_elements(s.steps) AS step) END) AS difference
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
    ),
    # Nothing can end while the database is down: the time begins at its start.
    Check(
        "I6",
        "overdue",
        """
SELECT key, difference
  FROM (SELECT 'order ' || order_id AS key,
               format('order %s is %s since %s', order_id, state, update_time) AS difference,
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
    ),
    Check(
        "I8",
        "order and its answer",
        f"""
SELECT concat_ws(' ', user_id, request_id) AS key,
       format('CreateOrder %s of %s: ', request_id, user_id) || CASE
           WHEN o.order_id IS NULL
           THEN format('answered with order %s, which does not exist', answer ->> 'order_id')
           WHEN a.state IS NULL
           THEN CASE WHEN o.create_time > now() - {ANSWERS_KEPT}
                THEN format('order %s exists, and is not answered', o.order_id) END
           WHEN o.order_id::text IS DISTINCT FROM answer ->> 'order_id'
                OR o.subtotal_minor::text IS DISTINCT FROM answer ->> 'subtotal_minor'
           THEN format('answered with order %s over %s, created is %s over %s',
                       answer ->> 'order_id', answer ->> 'subtotal_minor', o.order_id,
                       o.subtotal_minor)
       END AS difference
  FROM (SELECT scope AS user_id, request_id, state, body::jsonb AS answer
          FROM answers WHERE method = 'CreateOrder') AS a
  FULL JOIN orders AS o USING (user_id, request_id)
""",  # noqa: S608 - a constant
    ),
    Check(
        "I8",
        "attempt to pay and its answer",
        f"""
SELECT concat_ws(' ', user_id, request_id, s.saga_id) AS key,
       format('PayOrder %s of %s: %s, and its saga %s', request_id, user_id,
              coalesce(lower(a.state), 'not answered'),
              coalesce(s.saga_id || ' is ' || s.state, 'does not exist')) AS difference
  FROM (SELECT scope AS user_id, request_id, state
          FROM answers WHERE method = 'PayOrder') AS a
  FULL JOIN (SELECT * FROM sagas WHERE kind = 'PAY_ORDER') AS s USING (user_id, request_id)
 WHERE CASE
       WHEN a.state IS NULL THEN s.state IN ('COMPLETED', 'COMPENSATED', 'RESOLVED')
                                 AND s.update_time > now() - {ANSWERS_KEPT}
       WHEN s.saga_id IS NULL THEN true
       WHEN a.state = 'ANSWERED' THEN s.failure IS NOT NULL
                                      OR s.state NOT IN ('COMPLETED', 'RESOLVED')
       WHEN a.state = 'REFUSED' THEN s.state NOT IN ('COMPENSATED', 'RESOLVED')
       ELSE true END
""",  # noqa: S608 - a constant
    ),
    # An order keeps what it was paid with, also when it is cancelled.
    Check(
        "I8",
        "answer about paying",
        """
SELECT concat_ws(' ', a.scope, a.request_id) AS key,
       format('PayOrder %s of %s: answered with discount %s, by balance %s, by gateway %s, and'
              ' order %s has %s, %s, %s', a.request_id, a.scope, answer ->> 'discount_minor',
              answer ->> 'paid_by_balance_minor', answer ->> 'paid_by_gateway_minor',
              answer ->> 'order_id', o.discount_minor, o.paid_by_balance_minor,
              o.paid_by_gateway_minor) AS difference
  FROM (SELECT *, body::jsonb AS answer
          FROM answers WHERE method = 'PayOrder' AND state = 'ANSWERED') AS a
  LEFT JOIN orders AS o ON o.order_id::text = answer ->> 'order_id' AND o.user_id = a.scope
 WHERE (answer ->> 'discount_minor', answer ->> 'paid_by_balance_minor',
        answer ->> 'paid_by_gateway_minor', answer ->> 'payment_id')
       IS DISTINCT FROM (o.discount_minor::text, o.paid_by_balance_minor::text,
                         o.paid_by_gateway_minor::text, o.payment_id)
""",
    ),
    Check(
        "I8",
        "answer about cancelling",
        """
SELECT concat_ws(' ', a.scope, a.request_id) AS key,
       format('CancelOrder %s of %s: answered, and order %s %s', a.request_id, a.scope,
              a.answer ->> 'order_id', coalesce('is ' || o.state, 'does not exist')) AS difference
  FROM (SELECT *, body::jsonb AS answer FROM answers WHERE method = 'CancelOrder') AS a
  LEFT JOIN orders AS o ON o.order_id::text = a.answer ->> 'order_id'
 WHERE o.order_id IS NULL OR o.user_id <> a.scope OR o.state NOT IN ('CANCELLING', 'CANCELLED')
""",
    ),
)
