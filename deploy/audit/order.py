"""Checks of the order service: stock, orders, their sagas, and the stored answers."""

from __future__ import annotations

from typing import Final

from deploy.audit.audit_pass import Note
from deploy.audit.checks import (
    ANSWERS_KEPT,
    HEARTBEAT,
    Check,
    Figure,
    Listing,
    ServiceChecks,
    answers_figure,
    moving,
)
from deploy.audit.claims import KNOWN_PLANS, LIVE

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
    ),
    # An entry without a quantity was written by the database for a replica of an earlier release.
    Check(
        "I4",
        "stock journal",
        """
SELECT product_id || ' ' || lpad(product_version::text, 19, '0') AS key,
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
    OR first <> (e.kind <> 'RESTOCKED') OR e.kind = 'CREATED' AND product_version <> 1
    OR last AND stocked_after <> p.stocked
    OR product_version > p.version OR e.create_time < time_before
    OR e.create_time > p.update_time OR p.create_time > p.update_time
""",
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
                      WHEN 'RESOLVED'
                      THEN s.plan_version <> 1 AND step ->> 'participant' <> ''
                           AND step ->> 'state' NOT IN ('SKIPPED', 'COMPENSATED', 'STANDING',
                               CASE step ->> 'undoes' WHEN '' THEN 'PENDING' ELSE 'DONE' END)
                      ELSE false END)
""",
    ),
    # What an attempt was asked for and found out, and what its order has.
    Check(
        "I6",
        "saga and its order",
        """
SELECT s.saga_id::text AS key,
       format('saga %s (%s) of order %s: asked %s, found %s, and the order has subtotal %s,'
              ' discount %s, by balance %s, by gateway %s, coupon %s, payment %s', s.saga_id,
              s.kind, s.order_id, s.asked, s.facts, o.subtotal_minor, o.discount_minor,
              o.paid_by_balance_minor, o.paid_by_gateway_minor, coalesce(o.coupon_id, 'none'),
              coalesce(o.payment_id, 'none')) AS difference
  FROM sagas AS s
  JOIN orders AS o USING (order_id)
 WHERE s.request_id <> s.asked ->> 'request_id' OR o.currency_code <> s.asked ->> 'currency_code'
    OR CASE WHEN s.kind = 'PAY_ORDER'
       THEN o.subtotal_minor::text <> s.asked ->> 'subtotal_minor'
            OR s.state = 'COMPLETED'
               AND (o.discount_minor::text, o.payment_id,
                    CASE WHEN o.subtotal_minor > 0 THEN s.asked ->> 'coupon_id' END)
                   IS DISTINCT FROM (s.facts ->> 'discount_minor', s.facts ->> 'payment_id',
                                     o.coupon_id)
            OR s.state = 'COMPLETED'
               AND o.paid_by_balance_minor::text <> s.asked ->> 'balance_minor'
            OR o.state = 'PAYING' AND s.state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION')
               AND CASE WHEN o.subtotal_minor > 0 THEN s.asked ->> 'coupon_id' END
                   IS DISTINCT FROM o.coupon_id
       ELSE (o.paid_by_balance_minor::text, o.paid_by_gateway_minor::text, o.coupon_id)
            IS DISTINCT FROM (s.asked ->> 'balance_minor', s.asked ->> 'gateway_minor',
                              s.asked ->> 'coupon_id')
            OR NOT EXISTS (SELECT FROM sagas AS p
                            WHERE p.saga_id::text = s.asked ->> 'pay_saga_id'
                              AND p.order_id = s.order_id AND p.kind = 'PAY_ORDER'
                              AND (p.state = 'COMPLETED'
                                   OR p.state = 'RESOLVED' AND p.failure IS NULL)) END
""",
    ),
    Check(
        "I6",
        "times of the saga",
        """
SELECT s.saga_id::text AS key,
       format('saga %s of order %s: created %s, changed %s, steps %s', s.saga_id, s.order_id,
              s.create_time, s.update_time, s.steps) AS difference
  FROM sagas AS s
 WHERE s.update_time < s.create_time
    OR EXISTS (SELECT FROM jsonb_array_elements(s.steps) AS step
                WHERE (step ->> 'begin_time')::timestamptz < s.create_time
                   OR (step ->> 'end_time')::timestamptz < (step ->> 'begin_time')::timestamptz)
""",
    ),
    HEARTBEAT,
    # A saga that moves is due again within seconds, for however long it has to go on.
    Check(
        "I6",
        "overdue",
        f"""
SELECT key, difference
  FROM (SELECT 'order ' || order_id AS key,
               format('order %s is %s, to be paid until %s', order_id, state, expire_time)
                   AS difference, expire_time AS due_time
          FROM orders WHERE state = 'PENDING'
         UNION ALL
        SELECT 'saga ' || saga_id,
               format('saga %s of order %s, begun %s, is %s and due since %s: %s', saga_id,
                      order_id, create_time, state, lease_until,
                      coalesce(nullif(last_error, ''), 'no error')), lease_until
          FROM sagas WHERE state IN {LIVE} OR state = 'RESOLVING') AS open
 CROSS JOIN heartbeat AS h
 WHERE NOT ({moving("due_time")})
""",  # noqa: S608 - a constant
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
           WHEN NOT answer @> jsonb_build_object(
                    'order_id', o.order_id, 'user_id', o.user_id, 'currency_code', o.currency_code,
                    'subtotal_minor', o.subtotal_minor, 'items', items, 'state', 'PENDING',
                    'version', 1)
                OR jsonb_array_length(answer -> 'items') <> jsonb_array_length(items)
                OR (answer ->> 'create_time')::timestamptz <> o.create_time
                OR (answer ->> 'expire_time')::timestamptz <> o.expire_time
           THEN format('answered with order %s over %s, created is %s over %s: %s',
                       answer ->> 'order_id', answer ->> 'subtotal_minor', o.order_id,
                       o.subtotal_minor, answer)
       END AS difference
  FROM (SELECT scope AS user_id, request_id, state, body::jsonb AS answer
          FROM answers WHERE method = 'CreateOrder') AS a
  FULL JOIN orders AS o USING (user_id, request_id)
  LEFT JOIN (SELECT order_id, jsonb_agg(jsonb_build_object(
                        'product_id', product_id, 'quantity', quantity,
                        'unit_price_minor', unit_price_minor)) AS items
               FROM order_items GROUP BY order_id) AS i USING (order_id)
""",  # noqa: S608 - a constant
    ),
    # The journal keeps the request_id for ever, and the answer has the product as it was then.
    Check(
        "I8",
        "stocking and its answer",
        f"""
SELECT concat_ws(' ', kind, request_id) AS key,
       format('%s by %s: ', kind, request_id) || CASE
           WHEN e.product_id IS NULL
           THEN format('answered with product %s, and not in the stock journal',
                       answer ->> 'product_id')
           WHEN a.answer IS NULL
           THEN CASE WHEN e.create_time > now() - {ANSWERS_KEPT}
                THEN format('product %s has the entry, and it is not answered', e.product_id) END
           WHEN NOT answer @> jsonb_build_object(
                    'product_id', e.product_id, 'stocked', stocked_after,
                    'version', product_version, 'name', p.name, 'price', jsonb_build_object(
                        'currency_code', p.currency_code, 'amount_minor', p.price_minor))
           THEN format('answered with %s, and the entry of product %s has %s stocked', answer,
                       e.product_id, stocked_after) END AS difference
  FROM (SELECT CASE method WHEN 'CreateProduct' THEN 'CREATED' ELSE 'RESTOCKED' END AS kind,
               request_id, body::jsonb AS answer
          FROM answers WHERE method IN ('CreateProduct', 'RestockProduct')) AS a
  FULL JOIN (SELECT * FROM stock_entries WHERE kind <> 'OPENING') AS e USING (kind, request_id)
  LEFT JOIN products AS p ON p.product_id = e.product_id
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
  FROM (SELECT scope AS user_id, request_id, state, body::jsonb AS answer
          FROM answers WHERE method = 'PayOrder') AS a
  FULL JOIN (SELECT * FROM sagas WHERE kind = 'PAY_ORDER') AS s USING (user_id, request_id)
 WHERE CASE
       WHEN a.state IS NULL THEN s.state IN ('COMPLETED', 'COMPENSATED', 'RESOLVING', 'RESOLVED')
                                 AND s.update_time > now() - {ANSWERS_KEPT}
       WHEN s.saga_id IS NULL THEN true
       WHEN a.state = 'ANSWERED' THEN s.failure IS NOT NULL
                                      OR s.state NOT IN ('COMPLETED', 'RESOLVED')
       WHEN a.state = 'REFUSED' THEN s.state NOT IN ('COMPENSATED', 'RESOLVING', 'RESOLVED')
                                     OR s.failure ->> 'reason' IS DISTINCT FROM answer ->> 'reason'
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
 WHERE o.order_id IS NULL
    OR NOT answer @> jsonb_build_object(
           'order_id', o.order_id, 'user_id', o.user_id, 'currency_code', o.currency_code,
           'subtotal_minor', o.subtotal_minor, 'discount_minor', o.discount_minor,
           'paid_by_balance_minor', o.paid_by_balance_minor,
           'paid_by_gateway_minor', o.paid_by_gateway_minor, 'coupon_id', o.coupon_id,
           'payment_id', o.payment_id, 'state', 'PAID')
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
    OR NOT a.answer @> jsonb_build_object(
           'subtotal_minor', o.subtotal_minor, 'discount_minor', o.discount_minor,
           'paid_by_balance_minor', o.paid_by_balance_minor,
           'paid_by_gateway_minor', o.paid_by_gateway_minor, 'payment_id', o.payment_id)
""",
    ),
    # A saga that an operator retried or closed has the answer's identity and reason.
    Check(
        "I8",
        "answer about a saga",
        """
SELECT concat_ws(' ', a.method, a.request_id) AS key,
       format('%s %s: answered about saga %s of order %s, and %s', a.method, a.request_id,
              a.answer ->> 'saga_id', a.answer ->> 'order_id',
              CASE WHEN s.saga_id IS NULL THEN 'there is no such saga'
              ELSE format('it is %s, closed for the reason %L', s.state, s.resolution_reason) END)
           AS difference
  FROM (SELECT *, body::jsonb AS answer,
               row_number() OVER (PARTITION BY method, body::jsonb ->> 'saga_id'
                                  ORDER BY create_time DESC) = 1 AS last
          FROM answers WHERE method IN ('RetrySaga', 'ResolveSaga')) AS a
  LEFT JOIN sagas AS s
    ON s.saga_id::text = a.answer ->> 'saga_id' AND s.order_id::text = a.answer ->> 'order_id'
   AND s.kind = a.answer ->> 'kind'
 WHERE s.saga_id IS NULL
    OR a.method = 'ResolveSaga' AND last AND s.resolution_reason <> a.answer ->> 'resolution_reason'
""",
    ),
)

LISTINGS: Final = (
    Listing(
        Note.NEEDS_ATTENTION,
        """
SELECT format('saga %s of order %s, begun %s: %s. It goes on by itself; what else to do is in'
              ' docs/guides/attention.md', saga_id, order_id,
              to_char(create_time, 'YYYY-MM-DD HH24:MI:SS'),
              coalesce(nullif(last_error, ''), 'no error')) AS text
  FROM sagas WHERE state = 'NEEDS_ATTENTION' ORDER BY saga_id
""",
    ),
    Listing(
        Note.NEEDS_ATTENTION,
        f"""
SELECT format('saga %s of order %s is %s, of a plan that this release does not know (%s version'
              ' %s): start a replica of the release that began it, or close it by ResolveSaga',
              saga_id, order_id, state, kind, plan_version) AS text
  FROM sagas
 WHERE plan_version NOT IN {KNOWN_PLANS} AND state NOT IN ('COMPLETED', 'COMPENSATED', 'RESOLVED')
 ORDER BY saga_id
""",  # noqa: S608 - a constant
    ),
)

SERVICE: Final = ServiceChecks(CHECKS, FIGURES, LISTINGS)
