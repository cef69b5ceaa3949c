"""The saga's table. One row is one saga, so that one update moves it from a step to the next."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from order_service.tables import metadata

ONE_LIVE_PER_ORDER: Final = "sagas_one_live_per_order"
SAGA_REQUEST_ONCE: Final = "sagas_request_once"

sagas = sa.Table(
    "sagas",
    metadata,
    sa.Column("saga_id", sa.UUID(as_uuid=False), primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("plan_version", sa.Integer, nullable=False),
    sa.Column("order_id", sa.UUID(as_uuid=False), nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("asked", JSONB, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("steps", JSONB, nullable=False),
    sa.Column("facts", JSONB, nullable=False),
    sa.Column("failure", JSONB),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.Text),
    # Until then the epoch's owner is at work, or nobody is to be: who comes later takes it over.
    sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
    sa.Column("pivot_by", sa.DateTime(timezone=True)),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_attempt_time", sa.DateTime(timezone=True)),
    sa.Column("last_error", sa.Text, nullable=False),
    sa.Column("resolution_reason", sa.Text, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
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
        "sagas_due",
        "lease_until",
        postgresql_where=sa.text("state IN ('RUNNING', 'COMPENSATING')"),
    ),
)
