"""The heartbeat.

Revision ID: payment_0003
"""

from __future__ import annotations

from common.db import heartbeat
from common.db.migrations import execute

revision = "payment_0003"
down_revision = "payment_0002"


def upgrade() -> None:
    execute(heartbeat.DDL, heartbeat.rights("payment"))
