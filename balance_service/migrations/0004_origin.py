"""By whose call a deduction came about.

A replica of the release before writes deductions without it.

Revision ID: balance_0004
"""

from __future__ import annotations

from common.db.migrations import execute

revision = "balance_0004"
down_revision = "balance_0003"

COLUMN = """
ALTER TABLE ledger_entries ADD COLUMN IF NOT EXISTS origin text;
"""


def upgrade() -> None:
    execute(COLUMN)
