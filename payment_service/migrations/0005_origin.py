"""By whose call a payment came about.

A replica of the release before writes payments without it.

Revision ID: payment_0005
"""

from __future__ import annotations

from common.db.migrations import execute

revision = "payment_0005"
down_revision = "payment_0004"

COLUMN = """
ALTER TABLE payments ADD COLUMN IF NOT EXISTS origin text;
"""


def upgrade() -> None:
    execute(COLUMN)
