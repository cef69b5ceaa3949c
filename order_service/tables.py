"""The order database: products, orders, carts, sagas and the idempotency records."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from common.db.heartbeat import heartbeat_table
from common.db.idempotency import idempotency_table

SCHEMA: Final = "order_0008"
"""The oldest migration this release can serve on."""

STOCK_NOT_OVERSOLD: Final = "products_stock_not_oversold"
STOCK_NOT_NEGATIVE: Final = "products_stock_not_negative"
SEATS_ALL_OR_NONE: Final = "products_seats_all_or_none"
SEATS_VERSION: Final = "products_seats_version"
SEAT_ONCE: Final = "seats_pkey"
SEAT_LIVE_ONCE: Final = "order_seats_live_once"
ORDER_STATE: Final = "orders_state"
ORDER_PAID_IN_FULL: Final = "orders_paid_in_full"
ORDER_REQUEST_ONCE: Final = "orders_request_once"
ITEM_ONCE: Final = "order_items_pkey"
CART_ONCE: Final = "carts_pkey"
ONE_LIVE_PER_ORDER: Final = "sagas_one_live_per_order"
SAGA_REQUEST_ONCE: Final = "sagas_request_once"
SAGA_ONCE: Final = "sagas_pkey"
PRODUCT_ONCE: Final = "products_pkey"
STOCK_ENTRY_ONCE: Final = "stock_entries_pkey"
RECORD_ONCE: Final = "answers_pkey"

metadata = sa.MetaData()

_uuid: Final = sa.UUID(as_uuid=False)
_time: Final = sa.DateTime(timezone=True)
_label: Final = sa.Text(collation="C")

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
    sa.Column("seats", sa.BigInteger, nullable=False, server_default="0"),
    # The version at the last write by a release that knows seats: a write by an earlier one fails.
    sa.Column("seats_version", sa.BigInteger, nullable=False, server_default="0"),
    sa.CheckConstraint("reserved + sold <= stocked", name=STOCK_NOT_OVERSOLD),
    sa.CheckConstraint("reserved >= 0 AND sold >= 0", name=STOCK_NOT_NEGATIVE),
    sa.CheckConstraint("seats IN (0, stocked) AND seats >= 0", name=SEATS_ALL_OR_NONE),
    sa.CheckConstraint("seats = 0 OR seats_version = version", name=SEATS_VERSION),
    sa.Index("products_newest", "create_time", "product_id"),
)

# A seat changes in the transaction that changes its product, and to the same version.
seats = sa.Table(
    "seats",
    metadata,
    sa.Column("product_id", _uuid, primary_key=True),
    sa.Column("label", _label, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("order_id", _uuid),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Index("seats_changed", "product_id", "version"),
)

# Append-only. The quantity is NULL in entries that the database wrote for a replica of the earlier
# release: it is the difference to the entry before.
stock_entries = sa.Table(
    "stock_entries",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("product_id", _uuid, nullable=False),
    sa.Column("quantity", sa.BigInteger),
    sa.Column("stocked_after", sa.BigInteger, nullable=False),
    sa.Column("product_version", sa.BigInteger, nullable=False),
    sa.Column("create_time", _time, nullable=False),
    sa.UniqueConstraint("product_id", "product_version", name="stock_entries_version_once"),
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
    sa.Index("orders_due", "expire_time", postgresql_where=sa.text("state = 'PENDING'")),
    # For the audit: a summary of many pages, as of sagas. Updates stay within their pages (HOT).
    sa.Index("orders_touched", "update_time", postgresql_using="brin"),
    sa.Index(
        "orders_open_of_user",
        "user_id",
        postgresql_where=sa.text("state IN ('PENDING', 'PAYING')"),
    ),
)

# No foreign keys: they would look up the order and the product once for every line of a batch, and
# a line is only written in the transaction that creates its order and has locked its product.
order_items = sa.Table(
    "order_items",
    metadata,
    sa.Column("order_id", _uuid, primary_key=True),
    sa.Column("product_id", _uuid, primary_key=True),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("unit_price_minor", sa.BigInteger, nullable=False),
    sa.Column("seated", sa.Boolean, nullable=False, server_default=sa.false()),
)

order_seats = sa.Table(
    "order_seats",
    metadata,
    sa.Column("order_id", _uuid, primary_key=True),
    sa.Column("product_id", _uuid, primary_key=True),
    sa.Column("label", _label, primary_key=True),
    # Whether the order still has the seat.
    sa.Column("live", sa.Boolean, nullable=False),
    sa.Index(SEAT_LIVE_ONCE, "product_id", "label", unique=True, postgresql_where=sa.text("live")),
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

# One row is one saga, so that one update ends a step and begins the next.
sagas = sa.Table(
    "sagas",
    metadata,
    sa.Column("saga_id", _uuid, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("plan_version", sa.Integer, nullable=False),
    sa.Column("order_id", _uuid, nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("asked", JSONB, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("steps", JSONB, nullable=False),
    sa.Column("facts", JSONB, nullable=False),
    sa.Column("failure", JSONB),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("snapshot", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.Text),
    # Until then the owner runs the saga, or the saga waits. After it, any replica takes it over.
    sa.Column("lease_until", _time, nullable=False),
    sa.Column("pivot_by", _time),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_attempt_time", _time),
    sa.Column("waits_for", ARRAY(sa.Text), nullable=False),
    sa.Column("last_error", sa.Text, nullable=False),
    sa.Column("resolution_reason", sa.Text, nullable=False),
    sa.Column("create_time", _time, nullable=False),
    sa.Column("update_time", _time, nullable=False),
    sa.UniqueConstraint("kind", "user_id", "request_id", name=SAGA_REQUEST_ONCE),
    sa.Index(
        ONE_LIVE_PER_ORDER,
        "order_id",
        unique=True,
        postgresql_where=sa.text("state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION')"),
    ),
    sa.Index("sagas_by_order", "order_id", "saga_id"),
    sa.Index("sagas_by_state", "state", "saga_id"),
    sa.Index(
        "sagas_active",
        "lease_until",
        postgresql_where=sa.text(
            "state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION', 'RESOLVING')"
        ),
    ),
    sa.Index("sagas_touched", "update_time", postgresql_using="brin"),
)

heartbeat = heartbeat_table(metadata)

answers = idempotency_table(metadata)
