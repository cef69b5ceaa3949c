"""Products, orders with their lines, carts, and the answers.

Revision ID: order_0001
"""

from __future__ import annotations

from common.db import idempotency
from common.db.migrations import execute

revision = "order_0001"
down_revision = None

TABLES = """
CREATE TABLE products (
    product_id    uuid NOT NULL,
    name          text NOT NULL,
    currency_code text NOT NULL,
    price_minor   bigint NOT NULL,
    stocked       bigint NOT NULL,
    reserved      bigint NOT NULL,
    sold          bigint NOT NULL,
    version       bigint NOT NULL,
    create_time   timestamptz NOT NULL,
    update_time   timestamptz NOT NULL,
    CONSTRAINT products_pkey PRIMARY KEY (product_id),
    CONSTRAINT products_price_not_negative CHECK (price_minor >= 0),
    CONSTRAINT products_stock_not_negative CHECK (reserved >= 0 AND sold >= 0),
    CONSTRAINT products_stock_not_oversold CHECK (reserved + sold <= stocked),
    CONSTRAINT products_version_from_1 CHECK (version >= 1)
) WITH (fillfactor = 50);

CREATE INDEX products_newest ON products (create_time, product_id);

CREATE TABLE orders (
    order_id              uuid NOT NULL,
    user_id               text NOT NULL,
    request_id            text NOT NULL,
    currency_code         text NOT NULL,
    subtotal_minor        bigint NOT NULL,
    discount_minor        bigint NOT NULL,
    paid_by_balance_minor bigint NOT NULL,
    paid_by_gateway_minor bigint NOT NULL,
    coupon_id             text,
    payment_id            text,
    state                 text NOT NULL,
    failure_reason        text NOT NULL,
    version               bigint NOT NULL,
    create_time           timestamptz NOT NULL,
    expire_time           timestamptz NOT NULL,
    update_time           timestamptz NOT NULL,
    CONSTRAINT orders_pkey PRIMARY KEY (order_id),
    CONSTRAINT orders_request_once UNIQUE (user_id, request_id),
    CONSTRAINT orders_state CHECK (
        state IN ('PENDING', 'PAYING', 'PAID', 'CANCELLING', 'CANCELLED', 'EXPIRED')),
    CONSTRAINT orders_discount_within_subtotal
        CHECK (discount_minor >= 0 AND discount_minor <= subtotal_minor),
    CONSTRAINT orders_paid_not_negative
        CHECK (paid_by_balance_minor >= 0 AND paid_by_gateway_minor >= 0),
    CONSTRAINT orders_paid_in_full CHECK (
        CASE WHEN state IN ('PAID', 'CANCELLING')
             THEN paid_by_balance_minor + paid_by_gateway_minor = subtotal_minor - discount_minor
             WHEN state IN ('PENDING', 'PAYING', 'EXPIRED')
             THEN paid_by_balance_minor + paid_by_gateway_minor + discount_minor = 0
             ELSE true END),
    CONSTRAINT orders_version_from_1 CHECK (version >= 1)
) WITH (fillfactor = 70);

CREATE INDEX orders_newest_of_user ON orders (user_id, create_time, order_id);
CREATE INDEX orders_due ON orders (expire_time) WHERE state = 'PENDING';

CREATE TABLE order_items (
    order_id         uuid NOT NULL,
    product_id       uuid NOT NULL,
    quantity         bigint NOT NULL,
    unit_price_minor bigint NOT NULL,
    CONSTRAINT order_items_pkey PRIMARY KEY (order_id, product_id),
    CONSTRAINT order_items_quantity_from_1 CHECK (quantity >= 1),
    CONSTRAINT order_items_price_not_negative CHECK (unit_price_minor >= 0)
);

CREATE TABLE carts (
    user_id     text NOT NULL,
    version     bigint NOT NULL,
    update_time timestamptz NOT NULL,
    CONSTRAINT carts_pkey PRIMARY KEY (user_id),
    CONSTRAINT carts_version_from_1 CHECK (version >= 1)
) WITH (fillfactor = 70);

CREATE TABLE cart_items (
    user_id    text NOT NULL,
    product_id uuid NOT NULL,
    quantity   bigint NOT NULL,
    CONSTRAINT cart_items_pkey PRIMARY KEY (user_id, product_id),
    CONSTRAINT cart_items_quantity_from_1 CHECK (quantity >= 1)
) WITH (fillfactor = 70);
"""

# The runtime role can neither change the schema nor rewrite what was ordered.
RIGHTS = """
GRANT SELECT, INSERT, UPDATE ON products, orders, carts TO tally_order_runtime;
GRANT SELECT, INSERT ON order_items TO tally_order_runtime;
GRANT SELECT, INSERT, UPDATE, DELETE ON cart_items TO tally_order_runtime;
GRANT SELECT, INSERT, UPDATE, DELETE ON answers TO tally_order_runtime;
GRANT SELECT ON alembic_version TO tally_order_runtime;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO tally_order_audit;
"""


def upgrade() -> None:
    execute(TABLES, idempotency.DDL, RIGHTS)
