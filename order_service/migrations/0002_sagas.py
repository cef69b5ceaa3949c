"""Sagas: one row each.

Revision ID: order_0002
"""

from __future__ import annotations

from common.db.migrations import execute

revision = "order_0002"
down_revision = "order_0001"

TABLES = """
CREATE TABLE sagas (
    saga_id           uuid NOT NULL,
    kind              text NOT NULL,
    plan_version      integer NOT NULL,
    order_id          uuid NOT NULL,
    user_id           text NOT NULL,
    request_id        text NOT NULL,
    asked             jsonb NOT NULL,
    state             text NOT NULL,
    steps             jsonb NOT NULL,
    facts             jsonb NOT NULL,
    failure           jsonb,
    epoch             bigint NOT NULL,
    owner             text,
    lease_until       timestamptz NOT NULL,
    pivot_by          timestamptz,
    attempts          integer NOT NULL,
    next_attempt_time timestamptz,
    last_error        text NOT NULL,
    resolution_reason text NOT NULL,
    create_time       timestamptz NOT NULL,
    update_time       timestamptz NOT NULL,
    CONSTRAINT sagas_pkey PRIMARY KEY (saga_id),
    CONSTRAINT sagas_request_once UNIQUE (kind, user_id, request_id),
    CONSTRAINT sagas_kind CHECK (kind IN ('PAY_ORDER', 'CANCEL_ORDER')),
    CONSTRAINT sagas_state CHECK (state IN ('RUNNING', 'COMPENSATING', 'COMPLETED', 'COMPENSATED',
                                            'NEEDS_ATTENTION', 'RESOLVED')),
    CONSTRAINT sagas_epoch_from_1 CHECK (epoch >= 1),
    CONSTRAINT sagas_completed_without_failure CHECK (state <> 'COMPLETED' OR failure IS NULL),
    CONSTRAINT sagas_compensated_with_failure
        CHECK (state NOT IN ('COMPENSATING', 'COMPENSATED') OR failure IS NOT NULL),
    CONSTRAINT sagas_resolved_with_reason
        CHECK ((state = 'RESOLVED') = (resolution_reason <> ''))
) WITH (fillfactor = 70);

CREATE UNIQUE INDEX sagas_one_live_per_order ON sagas (order_id)
    WHERE state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION');
CREATE INDEX sagas_by_order ON sagas (order_id, saga_id);
CREATE INDEX sagas_by_state ON sagas (state, saga_id);
CREATE INDEX sagas_due ON sagas (lease_until) WHERE state IN ('RUNNING', 'COMPENSATING');
"""

RIGHTS = """
GRANT SELECT, INSERT, UPDATE ON sagas TO tally_order_runtime;
GRANT SELECT ON sagas TO tally_order_audit;
"""


def upgrade() -> None:
    execute(TABLES, RIGHTS)
