"""Checks of campaigns with shares: how the quantity is split, and what each share has issued."""

from __future__ import annotations

from typing import Final

from deploy.audit.checks import Check
from deploy.audit.units import CAMPAIGN

SHARE_CHECKS: Final = (
    # A campaign of one share has no row here. The larger shares come first; their numbers follow
    # one another. The campaign's own row counts nothing.
    Check(
        "I5",
        "shares of the campaign",
        """
SELECT concat_ws(' ', campaign_id, share) AS key,
       format('campaign %s, share %s: ', campaign_id, share) || nullif(concat_ws(', ',
           CASE WHEN d.quantity IS NULL THEN 'belongs to no campaign' END,
           CASE WHEN s.quantity IS NULL THEN 'does not exist' END,
           CASE WHEN (s.first_number, s.quantity) <> (d.first_number, d.quantity)
                THEN format('%s from number %s, and due are %s from %s',
                            s.quantity, s.first_number, d.quantity, d.first_number) END,
           CASE WHEN d.in_row <> 0
                THEN format('%s issued from the row of the campaign', d.in_row) END,
           CASE WHEN d.shares > 64 THEN format('one of %s', d.shares) END
       ), '') AS difference
  FROM (SELECT campaign_id, share, c.shares, c.issued AS in_row,
               c.quantity / c.shares + (share < c.quantity % c.shares)::int AS quantity,
               1 + share * (c.quantity / c.shares) + least(share, c.quantity % c.shares)
                   AS first_number
          FROM campaigns AS c
         CROSS JOIN generate_series(0, least(c.shares, 65) - 1) AS share
         WHERE c.shares <> 1) AS d
  FULL JOIN campaign_shares AS s USING (campaign_id, share)
""",
        unit=CAMPAIGN,
    ),
    Check(
        "I5",
        "coupons of the share",
        """
SELECT concat_ws(' ', campaign_id, share) AS key,
       format('campaign %s, share %s: issued %s of %s, %s coupons with numbers from %s to %s',
              campaign_id, share, s.issued, s.quantity, coupons, lowest, highest) AS difference
  FROM campaign_shares AS s
 CROSS JOIN LATERAL (
       SELECT count(*) AS coupons, min(issue_number) AS lowest, max(issue_number) AS highest
         FROM coupons AS c
        WHERE c.campaign_id = s.campaign_id
          AND c.issue_number BETWEEN s.first_number AND s.first_number + s.quantity - 1) AS i
 WHERE s.issued NOT BETWEEN 0 AND s.quantity OR s.issued <> i.coupons
    OR i.lowest <> s.first_number OR i.highest <> s.first_number + s.issued - 1
""",
        unit=CAMPAIGN,
    ),
)
