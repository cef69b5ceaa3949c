"""What PostgreSQL counts about itself, and how long the disk takes to sync."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

SYNCS: Final = 50
BLOCK: Final = bytes(8192)
_STATISTICS: Final = """
    SELECT (SELECT sum(active_time) FROM pg_stat_database)::float8 AS statements_ms,
           (SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal')::float8 AS syncs
"""


@dataclass(frozen=True, slots=True)
class PostgresUse:
    """Counters since the server's start, or the difference of two readings.

    A session reports them at most once per second: they are read around all periods of a row, not
    around each.
    """

    statements_ms: float = 0.0
    """Time in statements, waits for locks and for the disk included."""
    syncs: float = 0.0
    """Syncs of the write-ahead log."""

    def since(self, before: PostgresUse) -> PostgresUse:
        return PostgresUse(
            self.statements_ms - before.statements_ms,
            self.syncs - before.syncs,
        )


async def postgres_use(admin_url: str) -> PostgresUse:
    connection = await asyncpg.connect(admin_url)
    try:
        row = await connection.fetchrow(_STATISTICS)
        return PostgresUse(row["statements_ms"], row["syncs"])
    finally:
        await connection.close()


def sync_ms(folder: Path) -> float:
    """The median time of writing one block and syncing it (fdatasync, as PostgreSQL does)."""
    took_s = []
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(BLOCK * SYNCS)
        file.flush()
        os.fsync(file.fileno())
        for number in range(SYNCS):
            start = time.perf_counter()
            os.pwrite(file.fileno(), BLOCK, number * len(BLOCK))
            os.fdatasync(file.fileno())
            took_s.append(time.perf_counter() - start)
    return statistics.median(took_s) * 1000
