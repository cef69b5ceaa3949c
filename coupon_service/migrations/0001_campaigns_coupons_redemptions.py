"""Campaigns, their coupons, every redemption there has been, and the answers.

Revision ID: coupon_0001
"""

from __future__ import annotations

from common.db import idempotency
from common.db.migrations import execute

revision = "coupon_0001"
down_revision = None

TABLES = """
CREATE TABLE campaigns (
    campaign_id          uuid NOT NULL,
    name                 text NOT NULL,
    currency_code        text,
    fixed_discount_minor bigint,
    percent_discount     bigint,
    max_discount_minor   bigint,
    min_order_minor      bigint,
    quantity             bigint NOT NULL,
    issued               bigint NOT NULL,
    start_time           timestamptz NOT NULL,
    end_time             timestamptz NOT NULL,
    coupon_lifetime_us   bigint NOT NULL,
    request_id           text NOT NULL,
    create_time          timestamptz NOT NULL,
    CONSTRAINT campaigns_pkey PRIMARY KEY (campaign_id),
    CONSTRAINT campaigns_request_once UNIQUE (request_id),
    CONSTRAINT campaigns_issued_within_quantity CHECK (issued BETWEEN 0 AND quantity),
    CONSTRAINT campaigns_one_discount
        CHECK (num_nonnulls(fixed_discount_minor, percent_discount) = 1),
    CONSTRAINT campaigns_percent CHECK (percent_discount BETWEEN 1 AND 100),
    CONSTRAINT campaigns_amounts_positive
        CHECK (fixed_discount_minor > 0 AND max_discount_minor > 0 AND min_order_minor > 0),
    CONSTRAINT campaigns_amounts_have_currency CHECK (
        (num_nonnulls(fixed_discount_minor, max_discount_minor, min_order_minor) > 0)
        = (currency_code IS NOT NULL)),
    CONSTRAINT campaigns_start_before_end CHECK (start_time < end_time),
    CONSTRAINT campaigns_lifetime_positive CHECK (coupon_lifetime_us > 0)
) WITH (fillfactor = 50);
CREATE INDEX campaigns_newest ON campaigns (create_time, campaign_id);

CREATE TABLE coupons (
    coupon_id         uuid NOT NULL,
    campaign_id       uuid NOT NULL,
    user_id           text NOT NULL,
    issue_number      bigint NOT NULL,
    request_id        text NOT NULL,
    issue_time        timestamptz NOT NULL,
    expire_time       timestamptz NOT NULL,
    redeem_request_id text,
    order_id          text,
    redeem_time       timestamptz,
    CONSTRAINT coupons_pkey PRIMARY KEY (coupon_id),
    CONSTRAINT coupons_user_once UNIQUE (campaign_id, user_id),
    CONSTRAINT coupons_number_once UNIQUE (campaign_id, issue_number),
    CONSTRAINT coupons_number_from_1 CHECK (issue_number >= 1),
    CONSTRAINT coupons_redeemed_whole
        CHECK (num_nonnulls(redeem_request_id, order_id, redeem_time) IN (0, 3))
) WITH (fillfactor = 80);
CREATE INDEX coupons_newest ON coupons (user_id, issue_time, coupon_id);

CREATE TABLE redemptions (
    user_id            text NOT NULL,
    request_id         text NOT NULL,
    coupon_id          uuid NOT NULL,
    order_id           text NOT NULL,
    currency_code      text NOT NULL,
    order_amount_minor bigint NOT NULL,
    discount_minor     bigint NOT NULL,
    redeem_time        timestamptz NOT NULL,
    restore_request_id text,
    restore_time       timestamptz,
    CONSTRAINT redemptions_pkey PRIMARY KEY (user_id, request_id),
    CONSTRAINT redemptions_discount_within_order
        CHECK (discount_minor BETWEEN 0 AND order_amount_minor),
    CONSTRAINT redemptions_restored_whole
        CHECK ((restore_time IS NULL) = (restore_request_id IS NULL))
);
CREATE UNIQUE INDEX redemptions_live_once
    ON redemptions (coupon_id) WHERE restore_time IS NULL;
"""

# The runtime role can neither change the schema nor rewrite who got what: of a campaign it changes
# the count, of a coupon its use, and of a redemption only that it was undone.
RIGHTS = """
GRANT SELECT, INSERT, UPDATE (issued) ON campaigns TO tally_coupon_runtime;
GRANT SELECT, INSERT, UPDATE (redeem_request_id, order_id, redeem_time)
    ON coupons TO tally_coupon_runtime;
GRANT SELECT, INSERT, UPDATE (restore_request_id, restore_time)
    ON redemptions TO tally_coupon_runtime;
GRANT SELECT, INSERT, UPDATE, DELETE ON answers TO tally_coupon_runtime;
GRANT SELECT ON alembic_version TO tally_coupon_runtime;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO tally_coupon_audit;
"""


def upgrade() -> None:
    execute(TABLES, idempotency.DDL, RIGHTS)
