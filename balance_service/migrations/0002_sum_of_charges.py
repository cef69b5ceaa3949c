"""The sum of the charges of each account, which bounds every later balance.

A replica of the release before writes accounts without the two columns: charged_at_version stays
behind the version, and the constraints hold. The next revision sums existing accounts.

Revision ID: balance_0002
"""

from __future__ import annotations

from common.db.migrations import execute

revision = "balance_0002"
down_revision = "balance_0001"

# Neither a default that is constant nor a constraint that is NOT VALID reads the table: the lock is
# short. Every new write is checked.
COLUMNS = """
ALTER TABLE accounts
    ADD COLUMN charged_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN charged_at_version bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT accounts_charged_at_version CHECK (charged_at_version BETWEEN 0 AND version)
        NOT VALID,
    ADD CONSTRAINT accounts_available_was_charged
        CHECK (charged_at_version < version OR available_minor <= charged_minor) NOT VALID;
"""


def upgrade() -> None:
    execute(COLUMNS)
