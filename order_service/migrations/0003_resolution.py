"""Sagas that never give up: their snapshots, what they wait for, and how a person closes them.

Replicas of the release before go on with this schema: they write neither new column, and read no
saga of a plan version that they do not know. Their sagas in NEEDS_ATTENTION are taken over by the
sweep of this release.

Revision ID: order_0003
"""

from __future__ import annotations

from alembic import op

from common.db.migrations import execute

revision = "order_0003"
down_revision = "order_0002"

COLUMNS = """
ALTER TABLE sagas ADD COLUMN IF NOT EXISTS snapshot bigint NOT NULL DEFAULT 0;
ALTER TABLE sagas ADD COLUMN IF NOT EXISTS waits_for text[] NOT NULL DEFAULT '{}';
"""

# A new CHECK is first valid for new rows only, and then for all without a lock that stops writes.
CHECKS = """
ALTER TABLE sagas DROP CONSTRAINT IF EXISTS sagas_state;
ALTER TABLE sagas ADD CONSTRAINT sagas_state CHECK (state IN (
    'RUNNING', 'COMPENSATING', 'COMPLETED', 'COMPENSATED', 'NEEDS_ATTENTION', 'RESOLVING',
    'RESOLVED')) NOT VALID;
ALTER TABLE sagas DROP CONSTRAINT IF EXISTS sagas_resolved_with_reason;
ALTER TABLE sagas ADD CONSTRAINT sagas_resolved_with_reason CHECK (CASE
    WHEN state IN ('RESOLVING', 'RESOLVED') THEN resolution_reason <> ''
    WHEN state IN ('COMPLETED', 'COMPENSATED') THEN resolution_reason = ''
    ELSE true END) NOT VALID;
"""

VALIDATE = """
ALTER TABLE sagas VALIDATE CONSTRAINT sagas_state;
ALTER TABLE sagas VALIDATE CONSTRAINT sagas_resolved_with_reason;
"""

# It replaces sagas_due: the sweep of the release before can use it as well. An attempt at this
# revision that was interrupted may have left an index that is not valid.
INDEX = """
DROP INDEX CONCURRENTLY IF EXISTS sagas_active;
CREATE INDEX CONCURRENTLY sagas_active ON sagas (lease_until)
    WHERE state IN ('RUNNING', 'COMPENSATING', 'NEEDS_ATTENTION', 'RESOLVING');
DROP INDEX CONCURRENTLY IF EXISTS sagas_due;
"""


def upgrade() -> None:
    execute(COLUMNS, CHECKS)
    with op.get_context().autocommit_block():
        execute(VALIDATE, INDEX)
