"""An index of entries by time: the audit finds what was touched.

Revision ID: balance_0005
"""

from __future__ import annotations

from common.db.migrations import create_index

revision = "balance_0005"
down_revision = "balance_0004"


def upgrade() -> None:
    create_index("ledger_entries_touched", "ledger_entries USING brin (create_time)")
