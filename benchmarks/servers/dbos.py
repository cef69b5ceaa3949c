"""DBOS as a subject: the process of ``dbos_orders``, which runs its own load."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from benchmarks.load.loop import Sample
from benchmarks.servers.dbos_orders import DATABASE_URL
from benchmarks.subjects import Load, Run
from deploy.local.plan import PROJECT

LINE_BYTES_MAX: Final = 64 << 20
START_LIMIT_S: Final = 60.0


@dataclass(slots=True)
class DbosSubject:
    """Its callers run in its own process: no gRPC, and no load generator to compete with."""

    process: asyncio.subprocess.Process
    name: str = "order and payment as a DBOS workflow"
    units: int = 1

    @asynccontextmanager
    async def session(self, load: Load) -> AsyncIterator[Run]:
        async def run() -> Sample:
            assert self.process.stdin is not None
            line = json.dumps({"callers": load.callers, "seconds": load.seconds})
            self.process.stdin.write(line.encode() + b"\n")
            seconds, latencies_s, failed = json.loads(await self.line())
            return Sample(seconds, latencies_s, Counter(failed))

        yield run

    async def line(self) -> bytes:
        """The next line of its output: that it is ready, then one per load."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process with the DBOS workflow has ended")
        return line


@asynccontextmanager
async def dbos(database_url: str, *, products: int, accounts: int) -> AsyncIterator[DbosSubject]:
    """Start the process, which makes its tables in the database; it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.servers.dbos_orders", str(products), str(accounts)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {DATABASE_URL: database_url},
        cwd=PROJECT,
        limit=LINE_BYTES_MAX,
    )
    subject = DbosSubject(process)
    try:
        async with asyncio.timeout(START_LIMIT_S):
            await subject.line()
        yield subject
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), START_LIMIT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
