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
              coalesce(p.payment_id || ' is ' || p.state, 'does not exist')) AS difference
  FROM (SELECT scope AS user_id, request_id, state, body::jsonb AS answer
          FROM answers WHERE method = 'ConfirmPayment') AS a
  FULL JOIN payments AS p USING (user_id, request_id)
 WHERE CASE a.state
       WHEN 'ANSWERED' THEN p.state IS DISTINCT FROM 'CONFIRMED' OR p.cancel_reason IS NOT NULL
                            OR answer ->> 'payment_id' <> p.payment_id::text
       WHEN 'REFUSED' THEN p.state IS DISTINCT FROM 'DECLINED'
       WHEN 'CANCELLED' THEN p.state = 'CONFIRMED' AND p.cancel_reason IS NULL
       ELSE p.state = 'CANCELLED' OR p.state = 'CONFIRMED' AND p.cancel_reason IS NOT NULL
            OR p.state IN ('CONFIRMED', 'DECLINED') AND p.update_time > now() - {ANSWERS_KEPT} END
""",  # noqa: S608 - a constant
    ),
    Check(
        "I6",
        "overdue payment",
        """
SELECT payment_id::text AS key,
       format('payment %s of order %s is %s since %s%s', payment_id, order_id, state, update_time,
              CASE WHEN cancel_reason IS NOT NULL THEN ', and to be refunded' END) AS difference
  FROM payments
 WHERE due_time IS NOT NULL
   AND greatest(update_time, pg_postmaster_start_time())
       < now() - make_interval(secs => CAST(:overdue_s AS double precision))
""",
        certain=False,
    ),
)
