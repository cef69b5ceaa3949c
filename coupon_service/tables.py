"""The coupon database: campaigns, their shares, coupons, redemptions, idempotency records."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from common.db.idempotency import idempotency_table

SCHEMA: Final = "coupon_0005"
"""The oldest migration this release can serve on."""

CAMPAIGN_REQUEST_ONCE: Final = "campaigns_request_once"
ISSUED_WITHIN_QUANTITY: Final = "campaigns_issued_within_quantity"
SHARES_COUNT_ISSUED: Final = "campaigns_shares_count_issued"
SHARE_WITHIN_QUANTITY: Final = "campaign_shares_issued_within_quantity"
USER_ONCE: Final = "coupons_user_once"
NUMBER_ONCE: Final = "coupons_number_once"
TICKET_ONCE: Final = "coupons_ticket_once"
QUEUE_ONLY: Final = "campaigns_queue_only"
REDEEM_REQUEST_ONCE: Final = "redemptions_pkey"
LIVE_REDEMPTION_ONCE: Final = "redemptions_live_once"

metadata = sa.MetaData()

_id = sa.UUID(as_uuid=False)
_time = sa.DateTime(timezone=True)

campaigns = sa.Table(
    "campaigns",
    metadata,
    sa.Column("campaign_id", _id, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    # NULL: the campaign has no amounts, and its percentage applies to any currency.
    sa.Column("currency_code", sa.Text),
    sa.Column("fixed_discount_minor", sa.BigInteger),
    sa.Column("percent_discount", sa.BigInteger),
    sa.Column("max_discount_minor", sa.BigInteger),
    sa.Column("min_order_minor", sa.BigInteger),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("issued", sa.BigInteger, nullable=False),
    sa.Column("start_time", _time, nullable=False),
    sa.Column("end_time", _time, nullable=False),
    sa.Column("coupon_lifetime_us", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("create_time", _time, nullable=False),
    sa.Column("shares", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("queue_only", sa.Boolean, nullable=False, server_default=sa.false()),
    # How many of ``issued`` were issued by ticket.
    sa.Column("issued_by_ticket", sa.BigInteger, nullable=False, server_default="0"),
    # The highest fence of a consumer that has decided tickets of this campaign.
    sa.Column("queue_fence", sa.BigInteger, nullable=False, server_default="0"),
    sa.UniqueConstraint("request_id", name=CAMPAIGN_REQUEST_ONCE),
    sa.CheckConstraint("issued BETWEEN 0 AND quantity", name=ISSUED_WITHIN_QUANTITY),
    sa.CheckConstraint("shares BETWEEN 1 AND 64", name="campaigns_shares"),
    # A release that knows no shares would issue from this row.
    sa.CheckConstraint("shares = 1 OR issued = 0", name=SHARES_COUNT_ISSUED),
    sa.CheckConstraint("NOT queue_only OR issued = issued_by_ticket", name=QUEUE_ONLY),
    sa.Index("campaigns_newest", "create_time", "campaign_id"),
)

# Only of campaigns with more than one share. What they have issued is counted here alone.
campaign_shares = sa.Table(
    "campaign_shares",
    metadata,
    sa.Column("campaign_id", _id, primary_key=True),
    sa.Column("share", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("first_number", sa.BigInteger, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("issued", sa.BigInteger, nullable=False),
    sa.CheckConstraint("issued BETWEEN 0 AND quantity", name=SHARE_WITHIN_QUANTITY),
)

# No foreign keys: each costs one more lookup per row of a batch, and a row is only written in a
# transaction that has read the row it refers to.
coupons = sa.Table(
    "coupons",
    metadata,
    sa.Column("coupon_id", _id, primary_key=True),
    sa.Column("campaign_id", _id, nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("issue_number", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("issue_time", _time, nullable=False),
    sa.Column("expire_time", _time, nullable=False),
    # The live redemption; all three NULL if there is none.
    sa.Column("redeem_request_id", sa.Text),
    sa.Column("order_id", sa.Text),
    sa.Column("redeem_time", _time),
    # The ticket that it was issued by; NULL: none.
    sa.Column("ticket_id", _id),
    sa.UniqueConstraint("campaign_id", "user_id", name=USER_ONCE),
    sa.UniqueConstraint("campaign_id", "issue_number", name=NUMBER_ONCE),
    sa.Index("coupons_newest", "user_id", "issue_time", "coupon_id"),
    sa.Index(
        TICKET_ONCE,
        "ticket_id",
        unique=True,
        postgresql_where=sa.text("ticket_id IS NOT NULL"),
    ),
    # For the audit: a summary of many pages, as of redemptions.
    sa.Index("coupons_touched", "issue_time", "redeem_time", postgresql_using="brin"),
)

redemptions = sa.Table(
    "redemptions",
    metadata,
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("coupon_id", _id, nullable=False),
    sa.Column("order_id", sa.Text, nullable=False),
    sa.Column("currency_code", sa.Text, nullable=False),
    sa.Column("order_amount_minor", sa.BigInteger, nullable=False),
    sa.Column("discount_minor", sa.BigInteger, nullable=False),
    sa.Column("redeem_time", _time, nullable=False),
    sa.Column("restore_request_id", sa.Text),
    sa.Column("restore_time", _time),
    # NULL if a release before coupon_0005 wrote it.
    sa.Column("origin", sa.Text),
    sa.Index(
        LIVE_REDEMPTION_ONCE,
        "coupon_id",
        unique=True,
        postgresql_where=sa.text("restore_time IS NULL"),
    ),
    sa.Index("redemptions_touched", "redeem_time", "restore_time", postgresql_using="brin"),
)

answers = idempotency_table(metadata)
