"""The heartbeat: one row in a service's database, with the times in which a replica ran.

The audit takes ages against it instead of the clock: what waits for a service is overdue by the sum
of the times in which the service ran since then. So a stack that is stopped has the verdict that
it had while it ran, work gets its time after a pause, and a service that is restarted again and
again cannot put it off.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TSTZMULTIRANGE

from common.db.database import Database
from common.db.repeat import in_transaction
from common.db.row_locks import CLOCK, TIME
from common.tasks import PeriodicJob

INTERVAL_S: Final = 2.0
"""The row is written this often at most, by all replicas together."""
PAUSE_S: Final = 15.0
"""After a longer time without a beat the service counts as not having run meanwhile."""
RUNS_MAX: Final = 100
"""How many runs are kept, the newest: the row stays below 2 kB."""


def heartbeat_table(metadata: sa.MetaData) -> sa.Table:
    """The table, the same in every service that has one."""
    return sa.Table(
        "heartbeat",
        metadata,
        sa.Column("only_row", sa.Boolean, primary_key=True, server_default=sa.true()),
        sa.Column("runs", TSTZMULTIRANGE, nullable=False, server_default="{}"),
        sa.Column("beat_time", TIME, nullable=False, server_default=CLOCK),
        sa.CheckConstraint("only_row", name="heartbeat_one_row"),
        sa.CheckConstraint("upper(runs) <= beat_time", name="heartbeat_in_order"),
    )


DDL: Final = """
CREATE TABLE heartbeat (
    only_row   boolean NOT NULL DEFAULT true,
    runs       tstzmultirange NOT NULL DEFAULT '{}',
    beat_time  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT heartbeat_pkey PRIMARY KEY (only_row),
    CONSTRAINT heartbeat_one_row CHECK (only_row),
    CONSTRAINT heartbeat_in_order CHECK (upper(runs) <= beat_time)
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


# A row that another replica has locked is being written just now. The clock may be set back: then
# the row stays as it is until the clock has passed it. The time since the last beat belongs to a
# run unless it was a pause; only after a pause can there be a run too many.
_BEAT: Final = sa.text(f"""
UPDATE heartbeat
   SET runs = CASE WHEN beat_time >= now() - interval '{PAUSE_S:g} seconds'
              THEN runs + tstzmultirange(tstzrange(beat_time, now()))
              ELSE coalesce((SELECT range_agg(run)
                               FROM (SELECT run FROM unnest(runs) AS run
                                      ORDER BY run DESC LIMIT {RUNS_MAX - 1}) AS newest), '{{}}')
              END,
       beat_time = now()
 WHERE only_row = (SELECT only_row FROM heartbeat
                    WHERE beat_time < now() - interval '{INTERVAL_S:g} seconds'
                      FOR NO KEY UPDATE SKIP LOCKED)
""")  # noqa: S608 - constants


def heartbeat_job(database: Database) -> PeriodicJob:
    """The job that writes the row, unless another replica has just written it."""

    async def run(_stopping: object) -> None:
        await in_transaction(
            database, "heartbeat", lambda connection: connection.execute(_BEAT), idempotent=True
        )

    return PeriodicJob("heartbeat", INTERVAL_S, run)
