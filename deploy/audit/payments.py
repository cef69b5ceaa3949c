"""The payment service's book: payments, and what was answered about them."""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import ANSWERS_KEPT, Check, Figure

FIGURES: Final = (
    Figure(
        "I8",
        "{answers:,} about payments",
        "SELECT count(*) AS answers FROM answers",
    ),
)

# What is to be given back counts as cancelled: its request is refused from then on.
_CONFIRM_ANSWERED = Check(
    "I8",
    "answer about a payment",
    """
SELECT concat_ws(' ', a.scope, a.request_id) AS key,
       format('ConfirmPayment %s of %s: %s, and its payment %s', a.request_id, a.scope,
              lower(a.state), coalesce(p.payment_id || ' is ' || p.state, 'does not exist'))
           AS told
  FROM (SELECT *, body::jsonb AS told FROM answers WHERE method = 'ConfirmPayment') AS a
  LEFT JOIN payments AS p ON p.user_id = a.scope AND p.request_id = a.request_id
 WHERE CASE a.state
       WHEN 'ANSWERED' THEN p.state IS DISTINCT FROM 'CONFIRMED' OR p.cancel_reason IS NOT NULL
                            OR told ->> 'payment_id' <> p.payment_id::text
       WHEN 'REFUSED' THEN p.state IS DISTINCT FROM 'DECLINED'
       ELSE p.state = 'CONFIRMED' AND p.cancel_reason IS NULL END
""",
)

_CONFIRMED = Check(
    "I8",
    "payment",
    f"""
SELECT p.payment_id::text AS key,
       format('payment %s of %s: %s, and its request %s is %s', p.payment_id, p.user_id,
              lower(p.state), p.request_id, coalesce(lower(a.state), 'not answered')) AS told
  FROM payments AS p
  LEFT JOIN answers AS a
    ON a.method = 'ConfirmPayment' AND a.scope = p.user_id AND a.request_id = p.request_id
 WHERE CASE WHEN p.state = 'CANCELLED' OR p.state = 'CONFIRMED' AND p.cancel_reason IS NOT NULL
            THEN a.state IS DISTINCT FROM 'CANCELLED'
            WHEN p.state IN ('CONFIRMED', 'DECLINED')
            THEN a.state IS NULL AND p.update_time > now() - {ANSWERS_KEPT}
            ELSE a.state IN ('ANSWERED', 'REFUSED') END
""",  # noqa: S608 - a constant
)

_OVERDUE = Check(
    "I6",
    "overdue payment",
    """
SELECT payment_id::text AS key,
       format('payment %s of order %s is %s since %s%s', payment_id, order_id, state, update_time,
              CASE WHEN cancel_reason IS NOT NULL THEN ', and to be given back' END) AS told
  FROM payments
 WHERE due_time IS NOT NULL
   AND greatest(update_time, pg_postmaster_start_time())
       < now() - make_interval(secs => CAST(:overdue_s AS double precision))
""",
    certain=False,
)

CHECKS: Final = (_CONFIRM_ANSWERED, _CONFIRMED, _OVERDUE)
