"""The heartbeat: one row in a service's database, with the time at which a replica last ran.

The audit takes ages against it instead of the clock: what waits for a service is overdue by the
time in which the service ran. So a stack that is stopped gets the verdict that it had while it ran.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from common.db.engines import Database
from common.db.row_locks import CLOCK, TIME
from common.tasks import PeriodicJob

INTERVAL_S: Final = 2.0
"""The row is written this often at most, by all replicas together."""
PAUSE_S: Final = 15.0
"""After a longer pause ``begin_time`` is set anew: what waited meanwhile gets its time."""
_NOW: Final = sa.func.now(type_=TIME)


def heartbeat_table(metadata: sa.MetaData) -> sa.Table:
    """The table, the same in every service that has one."""
    return sa.Table(
        "heartbeat",
        metadata,
        sa.Column("only_row", sa.Boolean, primary_key=True, server_default=sa.true()),
        sa.Column("begin_time", TIME, nullable=False, server_default=CLOCK),
        sa.Column("beat_time", TIME, nullable=False, server_default=CLOCK),
        sa.CheckConstraint("only_row", name="heartbeat_one_row"),
        sa.CheckConstraint("begin_time <= beat_time", name="heartbeat_in_order"),
    )


DDL: Final = """
CREATE TABLE heartbeat (
    only_row   boolean NOT NULL DEFAULT true,
    begin_time timestamptz NOT NULL DEFAULT now(),
    beat_time  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT heartbeat_pkey PRIMARY KEY (only_row),
    CONSTRAINT heartbeat_one_row CHECK (only_row),
    CONSTRAINT heartbeat_in_order CHECK (begin_time <= beat_time)
) WITH (fillfactor = 10);
INSERT INTO heartbeat DEFAULT VALUES;
"""
"""Executed by a migration and frozen with it: change it by a new migration."""


def rights(service: str) -> str:
    """The grants of the table, for the migration that creates it."""
    return f"""
GRANT SELECT, UPDATE ON heartbeat TO tally_{service}_runtime;
GRANT SELECT ON heartbeat TO tally_{service}_audit;
"""


def heartbeat_job(database: Database, table: sa.Table) -> PeriodicJob:
    """The job that writes the row, unless another replica has just written it."""
    beat = _beat(table)

    async def run(_stopping: object) -> None:
        async with database.begin("heartbeat") as connection:
            await connection.execute(beat)

    return PeriodicJob("heartbeat", INTERVAL_S, run)


def _beat(table: sa.Table) -> sa.Executable:
    last = table.c.beat_time
    # A row that another replica has locked is being written just now. The clock may be set back:
    # then the row stays as it is until the clock has passed it.
    stale = (
        sa.select(table.c.only_row)
        .where(last < _NOW - _seconds(INTERVAL_S))
        .with_for_update(skip_locked=True, key_share=True)
        .scalar_subquery()
    )
    paused = last < _NOW - _seconds(PAUSE_S)
    return (
        sa.update(table)
        .values(begin_time=sa.case((paused, _NOW), else_=table.c.begin_time), beat_time=_NOW)
        .where(table.c.only_row == stale)
    )


def _seconds(seconds: float) -> sa.ColumnElement[object]:
    return sa.literal_column(f"interval '{seconds:g} seconds'", sa.Interval)
