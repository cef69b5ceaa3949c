"""Processes that take one lock in turn, and the check that no two held it at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from deploy.local.plan import PROJECT
from tests.integration.locking.worker import Held, Work

MODULE: Final = "tests.integration.locking.worker"


@dataclass(slots=True)
class Worker:
    """One process and the lines that it has written."""

    process: asyncio.subprocess.Process
    held: list[Held] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    said: asyncio.Condition = field(default_factory=asyncio.Condition)
    ready: bool = False
    reading: int = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    async def until(self, condition: Any) -> None:
        """Until what it has written fulfils ``condition``."""
        async with self.said:
            await self.said.wait_for(condition)

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if not line.startswith(b"{"):
                continue  # a line of the log
            said = json.loads(line)
            if "ready" in said:
                self.ready = True
            elif "reading" in said:
                self.reading += 1
            elif "error" in said:
                self.errors.append(said["error"])
            else:
                self.held.append(Held(**{**said, "pid": self.pid}))
            async with self.said:
                self.said.notify_all()


@asynccontextmanager
async def worker(work: Work) -> AsyncIterator[Worker]:
    """A running process, ready to take the lock; killed at the end if it still runs."""
    words = (sys.executable, "-m", MODULE, json.dumps(asdict(work)))
    process = await asyncio.create_subprocess_exec(
        *words, cwd=PROJECT, stdout=asyncio.subprocess.PIPE
    )
    running = Worker(process)
    reading = asyncio.create_task(running.read())
    try:
        await running.until(lambda: running.ready)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def ended(running: Worker) -> None:
    """Until it has done its work."""
    assert await running.process.wait() == 0


def overlaps(held: Sequence[Held]) -> list[tuple[Held, Held]]:
    """Pairs that held the lock at once, of those that had not lost it."""
    valid = sorted((one for one in held if not one.lost), key=lambda one: one.began)
    return [(one, two) for one, two in itertools.pairwise(valid) if two.began < one.ended]
