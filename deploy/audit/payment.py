"""Checks of the payment service: payments, and the stored answers."""

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
from deploy.audit.units import ANSWERED_SINCE, USER, WHOLE, Unit, answers_of_users
from tally.payment.v1 import payment_pb2

# An operator's answer has no user as its scope.
_USER_OF_ANSWER: Final = "CASE scope WHEN '' THEN body::jsonb ->> 'user_id' ELSE scope END"
UNITS: Final = {
    USER: Unit(
        f"""
SELECT user_id FROM payments WHERE update_time >= :since
 UNION SELECT {_USER_OF_ANSWER} FROM answers WHERE {ANSWERED_SINCE}
""",  # noqa: S608 - a constant
        {
            "payments": "user_id = ANY ({ids})",
            "answers": f"{answers_of_users(payment_pb2.DESCRIPTOR)}"
            " OR method = 'ResolvePayment' AND scope = ''"
            " AND body::jsonb ->> 'user_id' = ANY ({ids})",
        },
    )
}

FIGURES: Final = (
    Figure(
        "I7",
        "{currency_code} {refunded:,} refunded outside Tally",
        """
SELECT currency_code, sum(refunded_outside_minor) AS refunded
  FROM payments WHERE refunded_outside_minor > 0 GROUP BY currency_code ORDER BY currency_code
""",
    ),
    answers_figure("{answers:,} about payments"),
)

CHECKS: Final = (
    # A payment that is to be refunded counts as cancelled: its request is refused from then on.
    Check(
        "I8",
        "payment and its answer",
        f"""
SELECT concat_ws(' ', user_id, request_id) AS key,
       format('ConfirmPayment %s of %s: %s, and its payment %s', request_id, user_id,
              coalesce(lower(a.state), 'not answered'),
              coalesce(p.payment_id || ' is ' || p.state || ' over ' || p.amount_minor,
                       'does not exist')) AS difference
  FROM (SELECT scope AS user_id, request_id, state, body::jsonb AS answer
          FROM answers WHERE method = 'ConfirmPayment') AS a
  FULL JOIN payments AS p USING (user_id, request_id)
 WHERE CASE a.state
       WHEN 'ANSWERED' THEN p.state IS DISTINCT FROM 'CONFIRMED' OR p.cancel_reason IS NOT NULL
                            OR NOT answer @> jsonb_build_object(
                                   'payment_id', p.payment_id, 'order_id', p.order_id,
                                   'amount', jsonb_build_object('amount_minor', p.amount_minor,
                                                                'currency_code', p.currency_code),
                                   'payment_key', p.payment_key, 'gateway', p.gateway,
                                   'gateway_transaction_id', p.gateway_transaction_id)
       WHEN 'REFUSED' THEN p.state IS DISTINCT FROM 'DECLINED'
                           OR (answer ->> 'payment_id', answer ->> 'failure_code')
                              IS DISTINCT FROM (p.payment_id::text, p.failure_code)
       WHEN 'CANCELLED' THEN p.state = 'CONFIRMED' AND p.cancel_reason IS NULL
       ELSE p.state = 'CANCELLED' OR p.state = 'CONFIRMED' AND p.cancel_reason IS NOT NULL
            OR p.state IN ('CONFIRMED', 'DECLINED') AND p.update_time > now() - {ANSWERS_KEPT} END
""",  # noqa: S608 - a constant
    ),
    # If there was nothing to cancel, the answer is null. A payment that counts as not charged can
    # be found charged later, and is then given back.
    Check(
        "I8",
        "answer about settling a payment",
        """
SELECT concat_ws(' ', a.method, a.scope, a.request_id) AS key,
       format('%s %s of %s: answered with payment %s as %s over %s, and it %s', a.method,
              a.request_id, coalesce(nullif(a.scope, ''), answer ->> 'user_id'),
              answer ->> 'payment_id', answer ->> 'state', answer -> 'amount' ->> 'amount_minor',
              coalesce('is ' || p.state || ' over ' || p.amount_minor, 'does not exist')
       ) AS difference
  FROM (SELECT *, body::jsonb AS answer
          FROM answers WHERE method IN ('CancelPayment', 'ResolvePayment')) AS a
  LEFT JOIN payments AS p ON p.payment_id::text = answer ->> 'payment_id'
 WHERE jsonb_typeof(answer) <> 'null'
   AND (p.payment_id IS NULL
        OR NOT answer @> jsonb_build_object(
               'user_id', p.user_id, 'order_id', p.order_id, 'payment_key', p.payment_key,
               'amount', jsonb_build_object('amount_minor', p.amount_minor,
                                            'currency_code', p.currency_code))
        OR a.method = 'CancelPayment' AND p.user_id <> a.scope
        OR p.state <> answer ->> 'state'
           AND NOT (p.state = 'CANCELLED' AND p.refunded_outside_minor > 0)
           AND NOT (a.method = 'ResolvePayment' AND answer ->> 'state' = 'CONFIRMED'
                    AND p.state = 'CANCELLED' AND p.cancel_reason IS NOT NULL)
           AND NOT (coalesce(answer ->> 'failure_code', '') = 'NOT_CHARGED'
                    AND p.cancel_reason IS NOT NULL)
        OR a.method = 'ResolvePayment' AND p.resolution_reason IS NULL)
""",
    ),
    Check(
        "I7",
        "amounts and times of the payment",
        """
SELECT payment_id::text AS key,
       format('payment %s (%s) over %s: refunded %s, of it outside Tally %s, created %s, changed'
              ' %s, cancellation %s', payment_id, state, amount_minor, refunded_minor,
              refunded_outside_minor, create_time, update_time,
              coalesce(cancel_request_time::text, 'none')) AS difference
  FROM payments
 WHERE refunded_outside_minor < 0 OR refunded_outside_minor > refunded_minor
    OR CASE state WHEN 'CONFIRMED' THEN refunded_minor >= amount_minor
                  WHEN 'CANCELLED' THEN refunded_minor NOT IN (0, amount_minor)
                  ELSE refunded_minor <> 0 END
    OR update_time < create_time OR cancel_request_time < create_time
    OR cancel_request_time IS NOT NULL AND cancel_reason IS NULL
    OR refund_refusal_code IS NOT NULL AND cancel_reason IS NULL
    OR (gateway_transaction_id IS NOT NULL) <> (state IN ('CONFIRMED', 'CANCELLED'))
    OR (failure_code IS NOT NULL) <> (state = 'DECLINED')
""",
    ),
    Check(
        "I7",
        "transaction of one payment",
        """
SELECT concat_ws(' ', gateway, gateway_transaction_id) AS key,
       format('transaction %s is of %s payments: %s', gateway_transaction_id, count(*),
              string_agg(payment_id::text, ', ' ORDER BY payment_id)) AS difference
  FROM payments
 WHERE gateway_transaction_id IS NOT NULL
 GROUP BY gateway, gateway_transaction_id
HAVING count(*) > 1
""",
    ),
    HEARTBEAT,
    # A payment that moves has a next try within minutes, however often it was tried. One whose
    # refund the gateway has refused waits for a person, and is listed.
    Check(
        "I6 I7",
        "overdue payment",
        f"""
SELECT payment_id::text AS key,
       format('payment %s of order %s is %s%s and due since %s', payment_id, order_id, state,
              CASE WHEN cancel_reason IS NOT NULL THEN ', to be refunded,' END, due_time)
           AS difference
  FROM payments
 CROSS JOIN heartbeat AS h
 WHERE due_time IS NOT NULL AND NOT ({moving("due_time")})
""",  # noqa: S608 - a constant
        certain=False,
        unit=WHOLE,
    ),
    Check(
        "I7",
        "open payment without a next try",
        """
SELECT payment_id::text AS key,
       format('payment %s of order %s is %s%s, and no try is due', payment_id, order_id, state,
              CASE WHEN cancel_reason IS NOT NULL THEN ', to be refunded' END) AS difference
  FROM payments
 WHERE due_time IS NULL
   AND (state IN ('PENDING', 'UNKNOWN')
        OR state = 'CONFIRMED' AND cancel_reason IS NOT NULL AND refund_refusal_code IS NULL)
""",
    ),
)

LISTINGS: Final = (
    Listing(
        Note.NEEDS_ATTENTION,
        """
SELECT format('payment %s of order %s: the gateway refused to refund %s %s (%s). Give it back by'
              ' other means, then record it by ResolvePayment', payment_id, order_id,
              currency_code, amount_minor - refunded_minor, refund_refusal_code) AS text
  FROM payments
 WHERE state = 'CONFIRMED' AND refund_refusal_code IS NOT NULL
 ORDER BY payment_id
""",
    ),
    Listing(
        Note.REFUNDED_OUTSIDE,
        """
SELECT format('payment %s of order %s: %s %s of %s', payment_id, order_id, currency_code,
              refunded_outside_minor, amount_minor)
       || coalesce(': ' || resolution_reason, '') AS text
  FROM payments
 WHERE refunded_outside_minor > 0
 ORDER BY payment_id
""",
        unit=USER,
    ),
)

SERVICE: Final = ServiceChecks(CHECKS, FIGURES, UNITS, LISTINGS)
