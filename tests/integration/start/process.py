"""A service as a process: its log lines as they come, and its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class Service:
    """A running service process, and its log so far.

    The log is read all the time: a process whose log nobody reads blocks when the pipe is full.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._unread: asyncio.Queue[bytes] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    async def line(self, event: str) -> dict[str, Any]:
        """The next log line of this event."""
        while raw := await self._next():
            if raw.startswith(b"{"):
                line: dict[str, Any] = json.loads(raw)
                if line["event"] == event:
                    return line
        raise AssertionError(f"no {event!r} in {self.lines}")

    async def text(self, part: str) -> None:
        """Wait for a line with this text, which need not be one of the log."""
        while raw := await self._next():
            if part in raw.decode():
                return
        raise AssertionError(f"no {part!r} in {self.lines}")

    async def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the whole log."""
        while await self._next():
            pass
        return await self.process.wait(), "".join(self.lines)

    async def ended(self) -> None:
        """Wait until the log has ended."""
        await self._reading

    async def _next(self) -> bytes:
        """The next line; empty at the end."""
        raw = await self._unread.get()
        if raw:
            self.lines.append(raw.decode())
        else:
            self._unread.put_nowait(raw)  # it stays the end
        return raw

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while raw := await self.process.stderr.readline():
            self._unread.put_nowait(raw)
        self._unread.put_nowait(b"")

    async def stop(self) -> tuple[int, str]:
        """The same, after SIGTERM."""
        self.process.terminate()
        return await self.end()


@asynccontextmanager
async def process(module: str, *arguments: str, **environment: str) -> AsyncIterator[Service]:
    """``python -m module …`` with these variables, and no other TALLY_ variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stderr=asyncio.subprocess.PIPE,
        env={**inherited, "TALLY_BIND": "127.0.0.1:0", **environment},
    )
    service = Service(started)
    try:
        yield service
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()
        await service.ended()
