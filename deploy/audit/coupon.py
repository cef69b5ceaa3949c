"""Checks of the coupon service: campaigns, coupons, redemptions, and the stored answers.

Those of shares have a file of their own.
"""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import ANSWERS_KEPT, Check, Figure, ServiceChecks, answers_figure
from deploy.audit.coupon_shares import SHARE_CHECKS
from deploy.audit.units import ANSWERED_SINCE, CAMPAIGN, USER, WHOLE, Unit, answers_of_users
from tally.coupon.v1 import coupon_pb2

UNITS: Final = {
    USER: Unit(
        f"""
SELECT user_id FROM coupons WHERE issue_time >= :since OR redeem_time >= :since
 UNION SELECT user_id FROM redemptions WHERE redeem_time >= :since OR restore_time >= :since
 UNION SELECT scope FROM answers WHERE {ANSWERED_SINCE}
""",  # noqa: S608 - a constant
        {
            "coupons": "user_id = ANY ({ids})",
            "redemptions": "user_id = ANY ({ids})",
            "answers": answers_of_users(coupon_pb2.DESCRIPTOR),
        },
    ),
    CAMPAIGN: Unit(
        """
SELECT campaign_id FROM campaigns WHERE create_time >= :since
 UNION SELECT campaign_id FROM coupons WHERE issue_time >= :since
""",
        {
            "campaigns": "campaign_id = ANY ({ids})",
            "campaign_shares": "campaign_id = ANY ({ids})",
            "coupons": "campaign_id = ANY ({ids})",
        },
        "uuid",
    ),
}

FIGURES: Final = (
    Figure(
        "I5",
        "{campaigns:,} campaigns, {issued:,} coupons issued of {quantity:,}",
        """
SELECT count(*) AS campaigns, coalesce(sum(quantity), 0) AS quantity,
       coalesce(sum(issued), 0) + (SELECT coalesce(sum(issued), 0) FROM campaign_shares) AS issued
  FROM campaigns
""",
        CAMPAIGN,
    ),
    answers_figure("{answers:,} about coupons"),
)


def _issued(name: str, method: str, of_coupons: str) -> Check:
    """The coupons that this method issued, and its answers."""
    return Check(
        "I8",
        name,
        f"""
SELECT concat_ws(' ', user_id, request_id) AS key,
       format('{method} %s of %s: ', request_id, user_id) || CASE
           WHEN c.coupon_id IS NULL
           THEN format('answered with coupon %s, which does not exist', answer ->> 'coupon_id')
           WHEN a.state IS NULL
           THEN CASE WHEN c.issue_time > now() - {ANSWERS_KEPT}
                THEN format('coupon %s is issued, and not answered', c.coupon_id) END
           WHEN NOT answer @> jsonb_build_object(
                    'coupon_id', c.coupon_id, 'campaign_id', c.campaign_id,
                    'issue_number', c.issue_number, 'request_id', c.request_id)
                OR answer ->> 'ticket_id' IS DISTINCT FROM c.ticket_id::text
                OR (answer ->> 'issue_time')::timestamptz IS DISTINCT FROM c.issue_time
                OR (answer ->> 'expire_time')::timestamptz IS DISTINCT FROM c.expire_time
           THEN format('answered with coupon %s as number %s, issued is %s as number %s: %s',
                       answer ->> 'coupon_id', answer ->> 'issue_number', c.coupon_id,
                       c.issue_number, answer) END AS difference
  FROM (SELECT scope AS user_id, request_id, state, body::jsonb AS answer
          FROM answers WHERE method = '{method}') AS a
  FULL JOIN (SELECT * FROM coupons WHERE {of_coupons}) AS c USING (user_id, request_id)
""",  # noqa: S608 - constants
    )


CHECKS: Final = (
    Check(
        "I5",
        "campaign",
        """
SELECT campaign_id::text AS key,
       format('campaign %s: ', campaign_id) || nullif(concat_ws(', ',
           CASE WHEN c.issued IS NULL THEN 'has coupons and does not exist' END,
           CASE WHEN c.issued > c.quantity
                THEN format('issued %s of %s', c.issued, c.quantity) END,
           CASE WHEN c.issued <> coalesce(i.coupons, 0)
                THEN format('issued %s, %s coupons', c.issued, coalesce(i.coupons, 0)) END,
           CASE WHEN i.lowest <> 1 AND c.shares = 1 OR i.numbers <> i.coupons
                     OR i.highest <> i.coupons AND c.shares = 1
                THEN format('%s coupons with %s numbers from %s to %s',
                            i.coupons, i.numbers, i.lowest, i.highest) END,
           CASE WHEN i.users <> i.coupons
                THEN format('%s coupons of %s users', i.coupons, i.users) END,
           CASE WHEN c.issued_by_ticket <> coalesce(i.by_ticket, 0)
                THEN format('issued %s by ticket, %s coupons have one',
                            c.issued_by_ticket, coalesce(i.by_ticket, 0)) END,
           CASE WHEN c.queue_only AND i.by_ticket <> i.coupons
                THEN format('issued only by ticket, and %s of %s coupons have one',
                            i.by_ticket, i.coupons) END
       ), '') AS difference
  FROM (SELECT campaign_id, quantity, shares, queue_only, issued_by_ticket,
               issued + coalesce((SELECT sum(s.issued) FROM campaign_shares AS s
                                   WHERE s.campaign_id = campaigns.campaign_id), 0) AS issued
          FROM campaigns) AS c
  FULL JOIN (SELECT campaign_id, count(*) AS coupons, count(DISTINCT issue_number) AS numbers,
                    min(issue_number) AS lowest, max(issue_number) AS highest,
                    count(DISTINCT user_id) AS users, count(ticket_id) AS by_ticket
               FROM coupons GROUP BY campaign_id) AS i USING (campaign_id)
""",
        unit=CAMPAIGN,
    ),
    Check(
        "I5",
        "coupon in use",
        """
SELECT coupon_id::text || coalesce(' ' || r.request_id, '') AS key,
       format('coupon %s: ', coupon_id) || CASE
           WHEN r.request_id IS NULL
           THEN format('in use by order %s, and no redemption is live', c.order_id)
           WHEN c.redeem_request_id IS NULL
           THEN format('not in use, and its redemption %s by order %s is live',
                       r.request_id, r.order_id)
           WHEN (r.order_id, r.user_id, r.request_id, r.redeem_time)
                IS DISTINCT FROM (c.order_id, c.user_id, c.redeem_request_id, c.redeem_time)
           THEN format('in use by order %s under %s, redeemed by order %s under %s', c.order_id,
                       c.redeem_request_id, r.order_id, r.request_id) END AS difference
  FROM (SELECT coupon_id, user_id, order_id, redeem_request_id, redeem_time
          FROM coupons
         WHERE num_nonnulls(redeem_request_id, order_id, redeem_time) > 0) AS c
  FULL JOIN (SELECT coupon_id, user_id, order_id, request_id, redeem_time
               FROM redemptions WHERE restore_time IS NULL) AS r USING (coupon_id)
""",
    ),
    # Issued while the campaign is open, valid for its coupons' lifetime, redeemed while valid.
    Check(
        "I5",
        "times of the coupon",
        """
SELECT coupon_id::text AS key,
       format('coupon %s, issued %s and valid until %s, of a campaign from %s to %s with a lifetime'
              ' of %s', coupon_id, issue_time, expire_time, start_time, end_time,
              make_interval(secs => coupon_lifetime_us / 1e6)) AS difference
  FROM coupons
  JOIN campaigns AS c USING (campaign_id)
 WHERE issue_time < start_time OR issue_time >= end_time OR c.create_time > issue_time
    OR extract(epoch FROM expire_time - issue_time) * 1000000 <> coupon_lifetime_us
""",
    ),
    Check(
        "I5",
        "times of the redemption",
        """
SELECT concat_ws(' ', r.user_id, r.request_id) AS key,
       format('redemption %s: ', r.request_id) || CASE
           WHEN c.coupon_id IS NULL
           THEN format('coupon %s of %s does not exist', r.coupon_id, r.user_id)
           ELSE format('redeemed %s and restored %s, coupon %s is issued %s and valid until %s',
                       r.redeem_time, r.restore_time, r.coupon_id, c.issue_time, c.expire_time)
           END AS difference
  FROM redemptions AS r
  LEFT JOIN coupons AS c ON c.coupon_id = r.coupon_id AND c.user_id = r.user_id
 WHERE c.coupon_id IS NULL OR r.redeem_time < c.issue_time OR r.redeem_time >= c.expire_time
    OR r.restore_time < r.redeem_time
    OR (r.restore_time IS NULL) <> (r.restore_request_id IS NULL)
""",
    ),
    # The terms of a campaign never change.
    Check(
        "I5",
        "discount and the campaign's terms",
        """
SELECT concat_ws(' ', r.user_id, r.request_id) AS key,
       format('redemption %s of coupon %s: %s off %s, and by the campaign''s terms %s',
              r.request_id, r.coupon_id, r.discount_minor, r.order_amount_minor,
              coalesce(due_minor::text, 'none')) AS difference
  FROM redemptions AS r
  JOIN coupons USING (coupon_id)
  JOIN campaigns AS c USING (campaign_id)
 CROSS JOIN LATERAL (
       SELECT CASE WHEN r.order_amount_minor >= coalesce(c.min_order_minor, 0)
                        AND r.currency_code = coalesce(c.currency_code, r.currency_code)
              THEN least(r.order_amount_minor, c.max_discount_minor,
                         coalesce(c.fixed_discount_minor,
                                  div(r.order_amount_minor::numeric * c.percent_discount, 100)))
              END AS due_minor) AS terms
 WHERE r.discount_minor IS DISTINCT FROM due_minor
""",
    ),
    _issued("issued coupon and its answer", "IssueCoupon", "ticket_id IS NULL"),
    _issued("coupon issued by ticket and its answer", "QueueCoupon", "ticket_id IS NOT NULL"),
    # A ticket's id says in which queue it waited.
    Check(
        "I8",
        "ticket and its campaign",
        """
SELECT coupon_id::text AS key,
       format('coupon %s of campaign %s: issued by ticket %s, which is of another queue',
              coupon_id, campaign_id, ticket_id) AS difference
  FROM coupons
 WHERE right(ticket_id::text, 8) <> right(campaign_id::text, 8)
    OR substr(ticket_id::text, 15, 1) <> '7'
""",
    ),
    Check(
        "I8",
        "redemption and its answer",
        f"""
SELECT concat_ws(' ', user_id, request_id) AS key,
       format('RedeemCoupon %s of %s: ', request_id, user_id) || CASE
           WHEN r.coupon_id IS NULL
           THEN CASE a.state WHEN 'ANSWERED' THEN 'answered, and no coupon was redeemed' END
           WHEN r.restore_time IS NOT NULL
           THEN CASE WHEN a.state IS DISTINCT FROM 'CANCELLED'
                THEN format('coupon %s is restored, and the request is %s, not cancelled',
                            r.coupon_id, coalesce(lower(a.state), 'not answered')) END
           WHEN a.state IS NULL
           THEN CASE WHEN r.redeem_time > now() - {ANSWERS_KEPT}
                THEN format('coupon %s is redeemed, and not answered', r.coupon_id) END
           WHEN a.state <> 'ANSWERED'
           THEN format('%s, and coupon %s is redeemed', lower(a.state), r.coupon_id)
           WHEN a.answer -> 'discount' ->> 'amount_minor' IS DISTINCT FROM r.discount_minor::text
                OR a.answer -> 'discount' ->> 'currency_code' IS DISTINCT FROM r.currency_code
                OR a.answer -> 'coupon' ->> 'coupon_id' IS DISTINCT FROM r.coupon_id::text
                OR a.answer -> 'coupon' ->> 'order_id' IS DISTINCT FROM r.order_id
           THEN format('answered with %s, redeemed is coupon %s by order %s with %s %s',
                       a.answer, r.coupon_id, r.order_id, r.currency_code, r.discount_minor)
       END AS difference
  FROM (SELECT scope AS user_id, request_id, state, body::jsonb AS answer
          FROM answers WHERE method = 'RedeemCoupon') AS a
  FULL JOIN redemptions AS r USING (user_id, request_id)
""",  # noqa: S608 - a constant
    ),
    # If there was no such coupon, the answer has none. The restoration of a redemption is answered
    # with the coupon at that time; a second one too, and one of a redemption that never came.
    Check(
        "I8",
        "restoration and its answer",
        f"""
SELECT concat_ws(' ', user_id, request_id) AS key,
       format('RestoreCoupon %s of %s: ', request_id, user_id) || CASE
           WHEN a.state IS NULL
           THEN CASE WHEN r.restore_time > now() - {ANSWERS_KEPT}
                THEN format('coupon %s is restored, and it is not answered', r.coupon_id) END
           WHEN jsonb_typeof(coupon) = 'null' THEN NULL
           WHEN c.coupon_id IS NULL
           THEN format('answered with coupon %s, which does not exist', coupon ->> 'coupon_id')
           WHEN NOT coupon @> jsonb_build_object(
                    'campaign_id', c.campaign_id, 'issue_number', c.issue_number,
                    'request_id', c.issued_by)
                OR r.coupon_id <> c.coupon_id
                OR r.restore_time <> (coupon ->> 'as_of')::timestamptz
           THEN format('answered with coupon %s as of %s, restored is %s at %s',
                       coupon ->> 'coupon_id', coupon ->> 'as_of', r.coupon_id, r.restore_time)
       END AS difference
  FROM (SELECT scope AS user_id, request_id, state, body::jsonb -> 'coupon' AS coupon
          FROM answers WHERE method = 'RestoreCoupon') AS a
  FULL JOIN (SELECT user_id, restore_request_id AS request_id, coupon_id, restore_time
               FROM redemptions WHERE restore_time IS NOT NULL) AS r USING (user_id, request_id)
  LEFT JOIN (SELECT coupon_id, user_id AS owner, campaign_id, issue_number,
                    request_id AS issued_by FROM coupons) AS c
    ON c.coupon_id::text = coupon ->> 'coupon_id' AND c.owner = user_id
""",  # noqa: S608 - a constant
    ),
    Check(
        "I8",
        "campaign and its answer",
        f"""
SELECT request_id AS key,
       format('CreateCampaign %s: ', request_id) || CASE
           WHEN c.campaign_id IS NULL
           THEN format('answered with campaign %s, which does not exist', answer ->> 'campaign_id')
           WHEN a.state IS NULL
           THEN CASE WHEN c.create_time > now() - {ANSWERS_KEPT}
                THEN format('campaign %s exists, and is not answered', c.campaign_id) END
           WHEN NOT answer @> jsonb_build_object(
                    'campaign_id', c.campaign_id, 'name', c.name, 'quantity', c.quantity,
                    'coupon_lifetime_us', c.coupon_lifetime_us,
                    'terms', jsonb_build_object(
                        'currency_code', c.currency_code,
                        'fixed_discount_minor', c.fixed_discount_minor,
                        'percent_discount', c.percent_discount,
                        'max_discount_minor', c.max_discount_minor,
                        'min_order_minor', c.min_order_minor))
                OR (answer ->> 'start_time')::timestamptz IS DISTINCT FROM c.start_time
                OR (answer ->> 'end_time')::timestamptz IS DISTINCT FROM c.end_time
                -- An answer of an earlier release has no shares.
                OR coalesce((answer ->> 'shares')::bigint, 1) <> c.shares
                OR coalesce((answer ->> 'queue_only')::boolean, false) <> c.queue_only
           THEN format('answered with %s, and campaign %s has other terms', answer, c.campaign_id)
       END AS difference
  FROM (SELECT request_id, state, body::jsonb AS answer
          FROM answers WHERE method = 'CreateCampaign') AS a
  FULL JOIN campaigns AS c USING (request_id)
""",  # noqa: S608 - a constant
        unit=WHOLE,
    ),
)

SERVICE: Final = ServiceChecks((*CHECKS, *SHARE_CHECKS), FIGURES, UNITS)
