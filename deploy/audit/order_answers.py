"""Checks of the order service's stored answers."""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import ANSWERS_KEPT, Check
from deploy.audit.units import PRODUCT, WHOLE

ANSWER_CHECKS: Final = (
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
                        'unit_price_minor', unit_price_minor)
                    || CASE WHEN seated THEN jsonb_build_object('seats', (
                           SELECT jsonb_agg(label) FROM order_seats AS s
                            WHERE s.order_id = order_items.order_id
                              AND s.product_id = order_items.product_id)) ELSE '{{}}' END) AS items
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
  FROM (SELECT CASE method WHEN 'CreateProduct' THEN 'CREATED'
                           WHEN 'RestockProduct' THEN 'RESTOCKED' ELSE 'SEATED' END AS kind,
               request_id, body::jsonb AS answer
          FROM answers WHERE method IN ('CreateProduct', 'RestockProduct', 'AddSeats')) AS a
  FULL JOIN (SELECT * FROM stock_entries WHERE kind <> 'OPENING') AS e USING (kind, request_id)
  LEFT JOIN products AS p ON p.product_id = e.product_id
""",  # noqa: S608 - a constant
        unit=PRODUCT,
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
    OR o.state = 'PAID' AND (answer ->> 'update_time')::timestamptz <> o.update_time
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
    -- As a UUID: an index has it.
    ON s.saga_id = CASE WHEN pg_input_is_valid(a.answer ->> 'saga_id', 'uuid')
                        THEN (a.answer ->> 'saga_id')::uuid END
   AND s.order_id::text = a.answer ->> 'order_id'
   AND s.kind = a.answer ->> 'kind'
 WHERE s.saga_id IS NULL
    OR a.method = 'ResolveSaga' AND last AND s.resolution_reason <> a.answer ->> 'resolution_reason'
""",
        unit=WHOLE,
    ),
)
