"""Checks of the order service's sagas, within its database, and the list of those for a person."""

from __future__ import annotations

from typing import Final

from deploy.audit.audit_pass import Note
from deploy.audit.checks import HEARTBEAT, Check, Listing, moving
from deploy.audit.claims import KNOWN_PLANS, LIVE
from deploy.audit.units import WHOLE

SAGA_CHECKS: Final = (
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
               format('%s %s', step ->> 'name', coalesce(step ->> 'state', 'PENDING')), ', ')
               FROM jsonb_array_elements(s.steps) AS step) END) AS difference
  FROM sagas AS s
  LEFT JOIN orders AS o ON o.order_id = s.order_id AND o.user_id = s.user_id
 WHERE o.order_id IS NULL
    OR EXISTS (SELECT FROM jsonb_array_elements(s.steps) AS step
                -- A field that has its default is not stored.
                CROSS JOIN LATERAL (SELECT coalesce(step ->> 'state', 'PENDING') AS state) AS its
                WHERE CASE s.state
                      WHEN 'COMPLETED' THEN its.state NOT IN ('DONE', 'SKIPPED')
                      WHEN 'COMPENSATED'
                      THEN its.state NOT IN ('PENDING', 'SKIPPED', 'COMPENSATED')
                      WHEN 'RESOLVED'
                      THEN s.plan_version <> 1 AND step ->> 'participant' <> ''
                           AND its.state NOT IN ('SKIPPED', 'COMPENSATED', 'STANDING',
                               CASE coalesce(step ->> 'undoes', '') WHEN '' THEN 'PENDING'
                                                                    ELSE 'DONE' END)
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
        unit=WHOLE,
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
    # The states are written as ranges for the index: also those that this release does not know.
    Listing(
        Note.NEEDS_ATTENTION,
        f"""
SELECT format('saga %s of order %s is %s, of a plan that this release does not know (%s version'
              ' %s): start a replica of the release that began it, or close it by ResolveSaga',
              saga_id, order_id, state, kind, plan_version) AS text
  FROM sagas
 WHERE plan_version NOT IN {KNOWN_PLANS}
   AND (state < 'COMPENSATED' OR state > 'COMPENSATED' AND state < 'COMPLETED'
        OR state > 'COMPLETED' AND state < 'RESOLVED' OR state > 'RESOLVED')
 ORDER BY saga_id
""",  # noqa: S608 - a constant
    ),
)
