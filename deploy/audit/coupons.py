"""The coupon service's book: campaigns, coupons, their use, and what was answered about them."""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import ANSWERS_KEPT, Check, Figure

FIGURES: Final = (
    Figure(
        "I5",
        "{campaigns:,} campaigns, {issued:,} coupons issued of {quantity:,}",
        """
SELECT count(*) AS campaigns, coalesce(sum(issued), 0) AS issued,
       coalesce(sum(quantity), 0) AS quantity
  FROM campaigns
""",
    ),
    Figure(
        "I8",
        "{answers:,} about coupons",
        "SELECT count(*) AS answers FROM answers",
    ),
)

_CAMPAIGNS = Check(
    "I5",
    "campaign",
    """
SELECT campaign_id::text AS key,
       format('campaign %s: %s', campaign_id, concat_ws(', ',
           CASE WHEN c.issued IS NULL THEN 'has coupons and does not exist' END,
           CASE WHEN c.issued > c.quantity
                THEN format('issued %s of %s', c.issued, c.quantity) END,
           CASE WHEN c.issued <> coalesce(i.coupons, 0)
                THEN format('issued %s, %s coupons', c.issued, coalesce(i.coupons, 0)) END,
           CASE WHEN i.lowest <> 1 OR i.highest <> i.coupons OR i.numbers <> i.coupons
                THEN format('%s coupons with %s numbers from %s to %s',
                            i.coupons, i.numbers, i.lowest, i.highest) END,
           CASE WHEN i.users <> i.coupons
                THEN format('%s coupons of %s users', i.coupons, i.users) END)) AS told
  FROM campaigns AS c
  FULL JOIN (SELECT campaign_id, count(*) AS coupons, count(DISTINCT issue_number) AS numbers,
                    min(issue_number) AS lowest, max(issue_number) AS highest,
                    count(DISTINCT user_id) AS users
               FROM coupons GROUP BY campaign_id) AS i USING (campaign_id)
 WHERE c.issued IS NULL OR c.issued > c.quantity OR c.issued <> coalesce(i.coupons, 0)
    OR i.lowest <> 1 OR i.highest <> i.coupons OR i.numbers <> i.coupons OR i.users <> i.coupons
""",
)

_USES = Check(
    "I5",
    "coupon in use",
    """
SELECT coupon_id::text || coalesce(' ' || r.request_id, '') AS key,
       format('coupon %s: %s', coupon_id, CASE
           WHEN r.request_id IS NULL
           THEN format('in use by order %s, and no redemption is live', c.order_id)
           WHEN c.redeem_request_id IS NULL
           THEN format('not in use, and its redemption %s by order %s is live',
                       r.request_id, r.order_id)
           ELSE format('in use by order %s under %s, redeemed by order %s under %s', c.order_id,
                       c.redeem_request_id, r.order_id, r.request_id) END) AS told
  FROM (SELECT coupon_id, user_id, order_id, redeem_request_id
          FROM coupons WHERE redeem_request_id IS NOT NULL) AS c
  FULL JOIN (SELECT coupon_id, user_id, order_id, request_id
               FROM redemptions WHERE restore_time IS NULL) AS r USING (coupon_id)
 WHERE r.request_id IS NULL OR c.redeem_request_id IS NULL OR r.order_id <> c.order_id
    OR r.user_id <> c.user_id OR r.request_id <> c.redeem_request_id
""",
)

_ISSUE_ANSWERED = Check(
    "I8",
    "answer about an issued coupon",
    """
SELECT concat_ws(' ', a.scope, a.request_id) AS key,
       format('IssueCoupon %s of %s: answered with coupon %s, %s', a.request_id, a.scope,
              a.told ->> 'coupon_id', CASE
           WHEN c.coupon_id IS NULL THEN 'which does not exist'
           ELSE format('which has number %s and belongs to %s under %s', c.issue_number, c.user_id,
                       c.request_id) END) AS told
  FROM (SELECT *, body::jsonb AS told FROM answers WHERE method = 'IssueCoupon') AS a
  LEFT JOIN coupons AS c ON c.coupon_id::text = a.told ->> 'coupon_id'
 WHERE c.coupon_id IS NULL OR c.user_id <> a.scope OR c.request_id <> a.request_id
    OR c.issue_number::text <> a.told ->> 'issue_number'
""",
)

_ISSUED = Check(
    "I8",
    "issued coupon",
    f"""
SELECT c.coupon_id::text AS key,
       format('coupon %s of %s: issued, and its request %s is not answered', c.coupon_id,
              c.user_id, c.request_id) AS told
  FROM coupons AS c
  LEFT JOIN answers AS a
    ON a.method = 'IssueCoupon' AND a.scope = c.user_id AND a.request_id = c.request_id
 WHERE a.state IS NULL AND c.issue_time > now() - {ANSWERS_KEPT}
""",  # noqa: S608 - a constant
)

_REDEEM_ANSWERED = Check(
    "I8",
    "answer about a redemption",
    """
SELECT concat_ws(' ', a.scope, a.request_id) AS key,
       format('RedeemCoupon %s of %s: %s', a.request_id, a.scope, CASE
           WHEN r.request_id IS NULL THEN 'answered, and no coupon was redeemed'
           WHEN a.state = 'ANSWERED' THEN 'answered, and restored without being cancelled'
           ELSE format('%s, and coupon %s is redeemed', lower(a.state), r.coupon_id) END) AS told
  FROM answers AS a
  LEFT JOIN redemptions AS r ON r.user_id = a.scope AND r.request_id = a.request_id
 WHERE a.method = 'RedeemCoupon'
   AND CASE WHEN a.state = 'ANSWERED' THEN r.request_id IS NULL OR r.restore_time IS NOT NULL
            ELSE r.request_id IS NOT NULL AND r.restore_time IS NULL END
""",
)

_REDEEMED = Check(
    "I8",
    "redemption",
    f"""
SELECT concat_ws(' ', r.user_id, r.request_id) AS key,
       format('redemption of coupon %s under %s: %s, and its request is %s', r.coupon_id,
              r.request_id, CASE WHEN r.restore_time IS NULL THEN 'live' ELSE 'restored' END,
              coalesce(lower(a.state), 'not answered')) AS told
  FROM redemptions AS r
  LEFT JOIN answers AS a
    ON a.method = 'RedeemCoupon' AND a.scope = r.user_id AND a.request_id = r.request_id
 WHERE CASE WHEN r.restore_time IS NULL
            THEN a.state IS NULL AND r.redeem_time > now() - {ANSWERS_KEPT}
            ELSE a.state IS DISTINCT FROM 'CANCELLED' END
""",  # noqa: S608 - a constant
)

CHECKS: Final = (_CAMPAIGNS, _USES, _ISSUE_ANSWERED, _ISSUED, _REDEEM_ANSWERED, _REDEEMED)
