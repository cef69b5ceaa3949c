"""The processes of the lab, which run each cell together."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.lab.size import Size
from benchmarks.lab.worker import LINE_BYTES_MAX
from deploy.local.errors import RunnerError
from deploy.local.plan import PROJECT

MODULE: Final = "benchmarks.lab.worker"
BEGIN_NS: Final = 30_000_000
"""Between the order to begin and the beginning: every process has read the order by then."""
CLOSING_S: Final = 60.0


@dataclass(slots=True)
class _Member:
    process: asyncio.subprocess.Process

    async def order(self, **values: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps(values) + "\n").encode())
        await self.process.stdin.drain()

    async def reply(self, limit_s: float) -> dict[str, Any]:
        """Its next line of JSON. Raises RunnerError."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(limit_s):
                while not (line := await self.process.stdout.readline()).startswith(b"{"):
                    if not line:
                        raise RunnerError("a process of the lab has ended")
        except TimeoutError:
            raise RunnerError("a process of the lab does not reply") from None
        return dict(json.loads(line))


@dataclass(frozen=True, slots=True)
class Crew:
    """Processes that wait for orders."""

    members: list[_Member]

    async def open(
        self, experiment: str, strategy: str, size: Size, seed: int, urls: dict[str, str]
    ) -> None:
        """Let each process prepare the cell."""
        for number, member in enumerate(self.members[: size.processes]):
            await member.order(
                experiment=experiment,
                strategy=strategy,
                size=asdict(size),
                seed=seed,
                process=number,
                **urls,
            )
        for member in self.members[: size.processes]:
            await member.reply(CLOSING_S)

    async def go(self, size: Size) -> tuple[int, list[dict[str, Any]]]:
        """Let all begin at one moment, and close the cell; that time, and what each replied."""
        at_ns = time.monotonic_ns() + BEGIN_NS
        members = self.members[: size.processes]
        for member in members:
            await member.order(at_ns=at_ns)
        limit_s = size.limit_s + CLOSING_S
        replies = await asyncio.gather(*(member.reply(limit_s) for member in members))
        for member in members:
            await member.order(close=True)
        for member in members:
            await member.reply(CLOSING_S)
        return at_ns, list(replies)


@asynccontextmanager
async def started_crew(count: int) -> AsyncIterator[Crew]:
    """So many processes, ready for orders, ended with the block."""
    async with AsyncExitStack() as exits:
        members = [await exits.enter_async_context(_member()) for _ in range(count)]
        for member in members:
            await member.reply(CLOSING_S)
        yield Crew(members)


@asynccontextmanager
async def _member() -> AsyncIterator[_Member]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", MODULE),
        cwd=PROJECT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
        # Ctrl-C ends the lab, which ends its processes.
        start_new_session=True,
    )
    try:
        yield _Member(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
