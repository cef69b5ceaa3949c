"""A program of the project in a process of its own, as a user starts it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path


async def run_program(
    module: str, *arguments: str | Path, **environment: str
) -> tuple[int, str, str]:
    """Its exit code, output and errors. ``environment``: the only TALLY_ variables that it has."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        env=known | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), error.decode()
