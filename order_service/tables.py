"""The order database: products, orders, carts and the answers. The sagas' tables join them here."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from common.db.idempotency import idempotency_table

SCHEMA: Final = "order_0002"
"""The oldest migration this release can serve on."""

STOCK_NOT_OVERSOLD: Final = "products_stock_not_oversold"
STOCK_NOT_NEGATIVE: Final = "products_stock_not_negative"
ORDER_STATE: Final = "orders_state"
ORDER_PAID_IN_FULL: Final = "orders_paid_in_full"
ORDER_REQUEST_ONCE: Final = "orders_request_once"
ITEM_ONCE: Final = "order_items_pkey"
CART_ONCE: Final = "carts_pkey"

metadata = sa.MetaData()

_uuid: Final = sa.UUID(as_uuid=False)
_time: Final = sa.DateTime(timezone=True)

products = sa.Table(
    "products",
    metadata,
    sa.Column("product_id", _uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("currency_code", sa.Text, nullable=False),
    sa.Column("price_minor", sa.BigInteger, nullable=False),
    sa.Column("stocked", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("sold", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("create_time", _time, nullable=False),
    sa.Column("update_time", _time, nullable=False),
    sa.CheckConstraint("reserved + sold <= stocked", name=STOCK_NOT_OVERSOLD),
    sa.CheckConstraint("reserved >= 0 AND sold >= 0", name=STOCK_NOT_NEGATIVE),
    sa.Index("products_newest", "create_time", "product_id"),
)

orders = sa.Table(
    "orders",
    metadata,
    sa.Column("order_id", _uuid, primary_key=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("currency_code", sa.Text, nullable=False),
    sa.Column("subtotal_minor", sa.BigInteger, nullable=False),
    sa.Column("discount_minor", sa.BigInteger, nullable=False),
    sa.Column("paid_by_balance_minor", sa.BigInteger, nullable=False),
    sa.Column("paid_by_gateway_minor", sa.BigInteger, nullable=False),
    sa.Column("coupon_id", sa.Text),
    sa.Column("payment_id", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("failure_reason", sa.Text, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("create_time", _time, nullable=False),
    sa.Column("expire_time", _time, nullable=False),
    sa.Column("update_time", _time, nullable=False),
    sa.UniqueConstraint("user_id", "request_id", name=ORDER_REQUEST_ONCE),
    sa.Index("orders_newest_of_user", "user_id", "create_time", "order_id"),
    sa.Index(
        "orders_due",
        "expire_time",
        postgresql_where=sa.text("state = 'PENDING'"),
    ),
)

# No foreign keys: they would look up the order and the product once for every line of a batch, and
# a line is only ever written in the transaction that makes its order and has its product locked.
order_items = sa.Table(
    "order_items",
    metadata,
    sa.Column("order_id", _uuid, primary_key=True),
    sa.Column("product_id", _uuid, primary_key=True),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("unit_price_minor", sa.BigInteger, nullable=False),
)

carts = sa.Table(
    "carts",
    metadata,
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("update_time", _time, nullable=False),
)

cart_items = sa.Table(
    "cart_items",
    metadata,
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("product_id", _uuid, primary_key=True),
    sa.Column("quantity", sa.BigInteger, nullable=False),
)

answers = idempotency_table(metadata)
