"""Breaches in the book of the coupon service.

The format is that of ``test_breaches``.
"""

from __future__ import annotations

from typing import Final

from tests.integration.audit.books import (
    CAMPAIGN,
    COUPON_A,
    COUPON_B,
    PAY_A,
    PAY_B,
    TICKET_B,
    TOMORROW,
    A,
    B,
    C,
    F,
    answer,
    redemption,
    uid,
)

NOBODY = uid(99)
OTHER_QUEUE = f"{TICKET_B[:-1]}f"
BREACHES: Final = f"""
a live redemption is gone | I5 I8 | coupon in use
    coupon {COUPON_A}: in use by order {A}, and no redemption is live
    DELETE FROM redemptions WHERE coupon_id = '{COUPON_A}'
a coupon was issued before its campaign began | I5 | times of the coupon
    coupon {COUPON_A}, issued
    UPDATE campaigns SET start_time = '{TOMORROW}', end_time = '2100-01-01'
a coupon is valid for longer than its lifetime | I5 | times of the coupon
    coupon {COUPON_B}, issued
    UPDATE coupons SET expire_time = expire_time + interval '1 second'
    WHERE coupon_id = '{COUPON_B}'
a coupon was redeemed after its expiry | I5 | times of the redemption
    redemption {PAY_B}:redeem_coupon: redeemed
    UPDATE redemptions SET redeem_time = '2100-01-01', restore_time = '2100-01-01'
    WHERE coupon_id = '{COUPON_B}'
a redemption is of another user's coupon | I5 | times of the redemption
    redemption {PAY_B}:redeem_coupon: coupon {COUPON_B} of bob does not exist
    UPDATE coupons SET user_id = 'eve' WHERE coupon_id = '{COUPON_B}'
a redemption is of a coupon of another campaign | I5 | discount and the campaign's terms
    300 off 2000, and by the campaign's terms 2000
    INSERT INTO campaigns SELECT '{NOBODY}', 'd', 'KRW', 5000, NULL, NULL, NULL, 1, 1, start_time,
    end_time, coupon_lifetime_us, 'campaign-3', create_time FROM campaigns
    WHERE campaign_id = '{CAMPAIGN}';
    UPDATE coupons SET campaign_id = '{NOBODY}' WHERE coupon_id = '{COUPON_B}'
a redemption is of another amount | I5 | discount and the campaign's terms
    200 off 2000, and by the campaign's terms 300
    UPDATE redemptions SET discount_minor = 200 WHERE coupon_id = '{COUPON_B}'
an issue is answered with another number | I8 | issued coupon and its answer
    answered with coupon {COUPON_A} as number 3, issued is {COUPON_A} as number 1
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{issue_number}}', '3')::text
    WHERE method = 'IssueCoupon' AND scope = 'ann'
a coupon is answered and does not exist | I5 I8 | issued coupon and its answer
    IssueCoupon issue-1 of ann: answered with coupon {COUPON_A}, which does not exist
    DELETE FROM coupons WHERE coupon_id = '{COUPON_A}'
a coupon by ticket is answered and does not exist | I5 I8 | coupon issued by ticket and its answer
    QueueCoupon issue-1 of bob: answered with coupon {COUPON_B}, which does not exist
    DELETE FROM coupons WHERE coupon_id = '{COUPON_B}'
a redemption has another order than its answer | I8 | redemption and its answer
    redeemed is coupon {COUPON_A} by order {B}
    UPDATE redemptions SET order_id = '{B}' WHERE coupon_id = '{COUPON_A}'
a restoration is answered with another coupon | I8 | restoration and its answer
    RestoreCoupon restore-1 of bob: answered with coupon {NOBODY}, which does not exist
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{coupon,coupon_id}}', '"{NOBODY}"')::text
    WHERE method = 'RestoreCoupon'
a restored coupon has another number than its answer | I8 | restoration and its answer
    RestoreCoupon restore-1 of bob: answered with coupon {COUPON_B} as of
    UPDATE coupons SET issue_number = 3 WHERE coupon_id = '{COUPON_B}'
a coupon was restored at another time | I8 | restoration and its answer
    RestoreCoupon restore-1 of bob: answered with coupon {COUPON_B} as of
    UPDATE redemptions SET restore_time = '2100-01-01' WHERE coupon_id = '{COUPON_B}'
a restoration has no answer | I8 | restoration and its answer
    RestoreCoupon restore-1 of bob: coupon {COUPON_B} is restored, and it is not answered
    DELETE FROM answers WHERE method = 'RestoreCoupon'
a campaign is answered with other terms | I8 | campaign and its answer
    CreateCampaign campaign-1: answered with
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{quantity}}', '4')::text
    WHERE method = 'CreateCampaign'
a campaign has more coupons than its answer | I8 | campaign and its answer
    and campaign {CAMPAIGN} has other terms
    UPDATE campaigns SET quantity = 4
more coupons are issued than the quantity | I5 | campaign
    campaign {CAMPAIGN}: issued 2 of 1
    ALTER TABLE campaigns DROP CONSTRAINT campaigns_issued_within_quantity;
    UPDATE campaigns SET quantity = 1
a coupon is gone | I5 I8 | campaign
    campaign {CAMPAIGN}: issued 2, 1 coupons
    DELETE FROM coupons WHERE coupon_id = '{COUPON_B}'
an issue number is missing | I5 I8 | campaign
    campaign {CAMPAIGN}: 2 coupons with 2 numbers from 1 to 3
    UPDATE coupons SET issue_number = 3 WHERE coupon_id = '{COUPON_B}'
a user has two coupons of a campaign | I5 I8 | campaign
    campaign {CAMPAIGN}: 2 coupons of 1 users
    ALTER TABLE coupons DROP CONSTRAINT coupons_user_once;
    UPDATE coupons SET user_id = 'ann' WHERE coupon_id = '{COUPON_B}'
a coupon is in use without a redemption | I5 | coupon in use
    coupon {COUPON_B}: in use by order {C}, and no redemption is live
    UPDATE coupons SET order_id = '{C}', redeem_time = now(), redeem_request_id = 'r'
    WHERE coupon_id = '{COUPON_B}'
a redeemed coupon is marked as free | I5 | coupon in use
    coupon {COUPON_A}: not in use, and its redemption
    UPDATE coupons SET order_id = NULL, redeem_time = NULL, redeem_request_id = NULL
a coupon is in use by another order than its redemption | I5 | coupon in use
    coupon {COUPON_A}: in use by order {C} under
    UPDATE coupons SET order_id = '{C}' WHERE coupon_id = '{COUPON_A}'
a coupon is redeemed for a cancelled order | I5 | redemption
    saga {NOBODY} of bob: redemption of KRW 1, and no such saga
    {redemption("bob", NOBODY, COUPON_B, order_id=F, order_amount=750, discount=1)}
    UPDATE coupons SET order_id = '{F}', redeem_time = now(),
    redeem_request_id = '{NOBODY}:redeem_coupon' WHERE coupon_id = '{COUPON_B}'
a restored coupon is live again | I5 I8 | redemption
    order {B}: cancelled, and the redemption of KRW 300 is not undone
    UPDATE redemptions SET restore_time = NULL, restore_request_id = NULL
    WHERE coupon_id = '{COUPON_B}'
a discount is not the order's | I5 | redemption
    order {A}: redemption with amount 501 and not 500
    UPDATE redemptions SET discount_minor = 501 WHERE coupon_id = '{COUPON_A}'
a discount is above its campaign's terms | I5 | discount and the campaign's terms
    coupon {COUPON_A}: 500 off 5000, and by the campaign's terms 400
    UPDATE campaigns SET max_discount_minor = 400
a discount is below its campaign's terms | I5 | discount and the campaign's terms
    coupon {COUPON_B}: 300 off 2000, and by the campaign's terms 400
    UPDATE campaigns SET percent_discount = 20
a discount is on too small an order | I5 | discount and the campaign's terms
    coupon {COUPON_B}: 300 off 2000, and by the campaign's terms none
    UPDATE campaigns SET min_order_minor = 2001
a redemption is answered with another discount | I8 | redemption and its answer
    redeemed is coupon {COUPON_A} by order {A} with KRW 500
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{discount,amount_minor}}', '1')::text
    WHERE request_id = '{PAY_A}:redeem_coupon'
a paid order's redemption is undone | I5 I8 | redemption
    order {A}: KRW 500 recorded, and the redemption is undone
    UPDATE redemptions SET restore_time = now(), restore_request_id = 'r'
    WHERE coupon_id = '{COUPON_A}'
an issued coupon has no answer | I8 | issued coupon and its answer
    IssueCoupon issue-1 of ann: coupon {COUPON_A} is issued, and not answered
    DELETE FROM answers WHERE method = 'IssueCoupon' AND scope = 'ann'
a coupon issued by ticket has no answer | I8 | coupon issued by ticket and its answer
    QueueCoupon issue-1 of bob: coupon {COUPON_B} is issued, and not answered
    DELETE FROM answers WHERE method = 'QueueCoupon'
a ticket has another coupon than its answer | I8 | coupon issued by ticket and its answer
    QueueCoupon issue-1 of bob: answered with coupon {COUPON_B} as number 2, issued is {COUPON_B}
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{ticket_id}}', '"{NOBODY}"')::text
    WHERE method = 'QueueCoupon'
a coupon has lost its ticket | I5 I8 | campaign
    campaign {CAMPAIGN}: issued 1 by ticket, 0 coupons have one
    UPDATE coupons SET ticket_id = NULL
a ticket is of another queue | I8 | ticket and its campaign
    issued by ticket {OTHER_QUEUE}, which is of another queue
    UPDATE coupons SET ticket_id = '{OTHER_QUEUE}' WHERE coupon_id = '{COUPON_B}'
more coupons are counted by ticket than have one | I5 | campaign
    campaign {CAMPAIGN}: issued 2 by ticket, 1 coupons have one
    UPDATE campaigns SET issued_by_ticket = 2
a coupon of a campaign with a queue only has no ticket | I5 I8 | campaign
    campaign {CAMPAIGN}: issued only by ticket, and 1 of 2 coupons have one
    ALTER TABLE campaigns DROP CONSTRAINT campaigns_queue_only;
    UPDATE campaigns SET queue_only = true
a redemption is answered and did not happen | I8 | redemption and its answer
    RedeemCoupon lost of ann: answered, and no coupon was redeemed
    {answer("RedeemCoupon", "ann", "lost", {})}
"""
