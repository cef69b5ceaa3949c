"""Checks of the payment service: payments, and the stored answers."""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import ANSWERS_KEPT, Check, answers_figure

FIGURES: Final = (answers_figure("{answers:,} about payments"),)

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
                            OR (answer ->> 'payment_id', answer -> 'amount' ->> 'amount_minor',
                                answer -> 'amount' ->> 'currency_code',
                                answer ->> 'gateway_transaction_id')
                               IS DISTINCT FROM (p.payment_id::text, p.amount_minor::text,
                                                 p.currency_code, p.gateway_transaction_id)
       WHEN 'REFUSED' THEN p.state IS DISTINCT FROM 'DECLINED'
       WHEN 'CANCELLED' THEN p.state = 'CONFIRMED' AND p.cancel_reason IS NULL
       ELSE p.state = 'CANCELLED' OR p.state = 'CONFIRMED' AND p.cancel_reason IS NOT NULL
            OR p.state IN ('CONFIRMED', 'DECLINED') AND p.update_time > now() - {ANSWERS_KEPT} END
""",  # noqa: S608 - a constant
    ),
    # If there was nothing to cancel, the answer is null.
    Check(
        "I8",
        "answer about cancelling a payment",
        """
SELECT concat_ws(' ', a.scope, a.request_id) AS key,
       format('CancelPayment %s of %s: answered with payment %s as %s over %s, and it %s',
              a.request_id, a.scope, answer ->> 'payment_id', answer ->> 'state',
              answer -> 'amount' ->> 'amount_minor',
              coalesce('is ' || p.state || ' over ' || p.amount_minor, 'does not exist')
       ) AS difference
  FROM (SELECT *, body::jsonb AS answer FROM answers WHERE method = 'CancelPayment') AS a
  LEFT JOIN payments AS p
    ON p.payment_id::text = answer ->> 'payment_id' AND p.user_id = a.scope
   AND p.state = answer ->> 'state' AND p.amount_minor::text = answer -> 'amount' ->> 'amount_minor'
 WHERE jsonb_typeof(answer) <> 'null' AND p.payment_id IS NULL
""",
    ),
    # A confirmed payment is due from its cancellation on, which made its record a tombstone.
    Check(
        "I6",
        "overdue payment",
        """
SELECT payment_id::text AS key,
       format('payment %s of order %s is %s since %s%s', payment_id, order_id, p.state, since,
              CASE WHEN cancel_reason IS NOT NULL THEN ', and to be refunded' END) AS difference
  FROM payments AS p
  LEFT JOIN answers AS a
    ON a.method = 'ConfirmPayment' AND a.scope = p.user_id AND a.request_id = p.request_id
   AND a.state = 'CANCELLED' AND p.state = 'CONFIRMED'
 CROSS JOIN LATERAL (SELECT greatest(a.create_time, p.update_time) AS since) AS due
 WHERE due_time IS NOT NULL
   AND greatest(since, pg_postmaster_start_time())
       < now() - make_interval(secs => CAST(:overdue_s AS double precision))
""",
        certain=False,
    ),
)
