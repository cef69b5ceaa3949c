"""A service as a process: its log as it grows, its status at the end, and what it answers."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator


class Service:
    """A running service process and the lines of its log so far."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self, event: str) -> dict[str, Any]:
        """The next log line of this event."""
        assert self.process.stderr is not None
        while raw := await self.process.stderr.readline():
            self.lines.append(raw.decode())
            if raw.startswith(b"{"):
                told: dict[str, Any] = json.loads(raw)
                if told["event"] == event:
                    return told
        raise AssertionError(f"no {event!r} in {self.lines}")

    async def end(self) -> tuple[int, str]:
        """Waits for the end: the exit status, and all that was told."""
        assert self.process.stderr is not None
        rest = await self.process.stderr.read()
        self.lines.append(rest.decode())
        return await self.process.wait(), "".join(self.lines)

    async def stop(self) -> tuple[int, str]:
        """As ``end``, after SIGTERM."""
        self.process.terminate()
        return await self.end()


@asynccontextmanager
async def process(module: str, *arguments: str, **environment: str) -> AsyncIterator[Service]:
    """``python -m module …`` with these variables and none of the surrounding TALLY_ ones."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stderr=asyncio.subprocess.PIPE,
        env={**inherited, "TALLY_BIND": "127.0.0.1:0", **environment},
    )
    try:
        yield Service(started)
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()
