"""Breaches in the book of the coupon service's shares.

The format is that of ``test_breaches``.
"""

from __future__ import annotations

from typing import Final

from tests.integration.audit.books import CAMPAIGN
from tests.integration.audit.share_books import OF_GUS, SPLIT

BREACHES: Final = f"""
a share has issued more than there are coupons | I5 | coupons of the share
    campaign {SPLIT}, share 1: issued 2 of 2, 1 coupons with numbers from 4 to 4
    UPDATE campaign_shares SET issued = 2 WHERE share = 1
a coupon of a share is gone | I5 I8 | coupons of the share
    campaign {SPLIT}, share 1: issued 1 of 2, 0 coupons with numbers from
    DELETE FROM coupons WHERE coupon_id = '{OF_GUS}'
a coupon has the number of another share | I5 I8 | coupons of the share
    campaign {SPLIT}, share 0: issued 2 of 3, 3 coupons with numbers from 1 to 3
    UPDATE coupons SET issue_number = 3 WHERE coupon_id = '{OF_GUS}'
a number of a share was passed over | I5 I8 | coupons of the share
    campaign {SPLIT}, share 1: issued 1 of 2, 1 coupons with numbers from 5 to 5
    UPDATE coupons SET issue_number = 5 WHERE coupon_id = '{OF_GUS}'
a coupon has a number of no share | I5 I8 | coupons of the share
    campaign {SPLIT}, share 1: issued 1 of 2, 0 coupons with numbers from
    UPDATE coupons SET issue_number = 6 WHERE coupon_id = '{OF_GUS}'
a share has issued more than its quantity | I5 | coupons of the share
    campaign {SPLIT}, share 1: issued 1 of 0, 0 coupons with numbers from
    ALTER TABLE campaign_shares DROP CONSTRAINT campaign_shares_issued_within_quantity;
    UPDATE campaign_shares SET quantity = 0 WHERE share = 1
more coupons are issued from shares than their count | I5 | campaign
    campaign {SPLIT}: issued 2, 3 coupons
    UPDATE campaign_shares SET issued = 1 WHERE share = 0
a user has coupons of two shares | I5 I8 | campaign
    campaign {SPLIT}: 3 coupons of 2 users
    ALTER TABLE coupons DROP CONSTRAINT coupons_user_once;
    UPDATE coupons SET user_id = 'eve' WHERE coupon_id = '{OF_GUS}'
two shares have issued the same number | I5 I8 | campaign
    campaign {SPLIT}: 3 coupons with 2 numbers from 1 to 2
    ALTER TABLE coupons DROP CONSTRAINT coupons_number_once;
    UPDATE coupons SET issue_number = 2 WHERE coupon_id = '{OF_GUS}'
a share is gone | I5 | shares of the campaign
    campaign {SPLIT}, share 1: does not exist
    DELETE FROM campaign_shares WHERE share = 1
a share belongs to no campaign | I5 | shares of the campaign
    campaign {CAMPAIGN}, share 0: belongs to no campaign
    INSERT INTO campaign_shares VALUES ('{CAMPAIGN}', 0, 1, 3, 0)
shares are more than the quantity | I5 | shares of the campaign
    campaign {SPLIT}, share 1: 3 from number 4, and due are 2 from 4
    UPDATE campaign_shares SET quantity = 3 WHERE share = 1
shares have the same numbers | I5 | shares of the campaign
    campaign {SPLIT}, share 1: 2 from number 3, and due are 2 from 4
    UPDATE campaign_shares SET first_number = 3 WHERE share = 1
a campaign has another number of shares | I5 I8 | shares of the campaign
    campaign {SPLIT}, share 2: does not exist
    UPDATE campaigns SET shares = 3 WHERE campaign_id = '{SPLIT}'
a campaign was created with another number of shares | I8 | campaign and its answer
    CreateCampaign campaign-2: answered with
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{shares}}', '1')::text
    WHERE request_id = 'campaign-2'
coupons were issued from the row of a campaign with shares | I5 | shares of the campaign
    campaign {SPLIT}, share 0: 1 issued from the row of the campaign
    ALTER TABLE campaigns DROP CONSTRAINT campaigns_shares_count_issued;
    UPDATE campaigns SET issued = 1 WHERE campaign_id = '{SPLIT}'
"""
