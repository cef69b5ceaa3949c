"""pgbench on one hot row: what PostgreSQL does alone, one transaction per change."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
from yarl import URL

from benchmarks.load.loop import Sample
from benchmarks.subjects import Load, Run
from deploy.local.postgres_files import binaries
from deploy.local.processes import plain_path

THREADS: Final = 2
CONNECTIONS_MAX: Final = 16
"""On one row, further connections only wait."""
CONNECT_S: Final = 1
"""Added to the time limit, which includes the time to connect."""
_SCHEMA: Final = """
    CREATE TABLE account (id int PRIMARY KEY, available bigint NOT NULL, version bigint NOT NULL);
    CREATE TABLE entry (account int, version bigint, amount bigint, PRIMARY KEY (account, version));
    INSERT INTO account VALUES (1, 1000000000000, 0)
"""
_SCRIPT: Final = """\
BEGIN;
UPDATE account SET available = available - 1, version = version + 1 WHERE id = 1
 RETURNING version AS version \\gset
INSERT INTO entry VALUES (1, :version, -1);
COMMIT;
"""


@dataclass(slots=True)
class PgbenchSubject:
    """One account and its ledger."""

    database: URL
    name: str = "pgbench, 1 account, a transaction per change"
    units: int = 1

    async def create_tables(self) -> None:
        connection = await asyncpg.connect(str(self.database))
        try:
            await connection.execute(_SCHEMA)
        finally:
            await connection.close()

    @asynccontextmanager
    async def session(self, load: Load) -> AsyncIterator[Run]:
        with tempfile.TemporaryDirectory() as folder:

            async def run() -> Sample:
                return await self._run(load, Path(folder))

            yield run

    async def _run(self, load: Load, folder: Path) -> Sample:
        connections = min(load.callers, CONNECTIONS_MAX)
        (folder / "script.sql").write_text(_SCRIPT)
        process = await asyncio.create_subprocess_exec(
            binaries() / "pgbench",
            *("--no-vacuum", "--protocol=prepared", "--log", "--file=script.sql"),
            f"--client={connections}",
            f"--jobs={min(THREADS, connections)}",
            f"--time={CONNECT_S + math.ceil(load.seconds)}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment(),
            cwd=folder,
        )
        _, problems = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"pgbench failed: {problems.decode(errors='replace')}")
        return _sample(folder)

    def _environment(self) -> Mapping[str, str]:
        return plain_path() | {
            "PGHOST": self.database.host or "",
            "PGPORT": str(self.database.port),
            "PGUSER": self.database.user or "",
            "PGPASSWORD": self.database.password or "",
            "PGDATABASE": self.database.path.lstrip("/"),
        }


def _sample(folder: Path) -> Sample:
    """Read the log, of which each thread has a file: a line is a transaction.

    Its columns: client, number, latency in microseconds, script, time of its end as seconds since
    the epoch, and as microseconds. pgbench's time limit includes the time to connect.
    """
    lines = [
        line for path in folder.glob("pgbench_log.*") for line in path.read_text().splitlines()
    ]
    if not lines:
        return Sample()
    columns = [[int(column) for column in line.split()[:6]] for line in lines]
    ends_s = [seconds + micros / 1e6 for *_, seconds, micros in columns]
    latencies_s = [latency_us / 1e6 for _, _, latency_us, *_ in columns]
    return Sample(max(ends_s) - min(ends_s) + latencies_s[0], latencies_s)
