"""`python -m tests.chaos`: faults of all kinds under load, then the comparison with the books."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from pathlib import Path
from typing import Final

from deploy.local.command_line import make_app, report, run_app
from tests.chaos.run import run
from tests.faults import table

WHOLE_MINUTES: Final = 10.0
app = make_app("tests.chaos", "Let everything fail at random times, and compare the books.")


@app.default
def chaos(*, seed: int | None = None, minutes: float = WHOLE_MINUTES) -> int:
    """Run one schedule; exit 0 if the books hold and the run proves something.

    A run of ten minutes or more writes its figures into docs/guides/failures.md.

    Parameters
    ----------
    seed
        The same seed has the same schedule; without, a new one.
    minutes
        How long faults happen; start, healing and comparison come on top.
    """
    seed = random.randrange(10**6) if seed is None else seed
    directory = Path(tempfile.mkdtemp(prefix="tally-chaos-"))
    result = asyncio.run(run(seed, minutes, directory / "data", report))
    if result.held:
        shutil.rmtree(directory)
    else:
        report(f"the logs and databases are in {directory}")
    if minutes >= WHOLE_MINUTES:
        table.write("chaos", [result.figures])
    for line in result.lines():
        report(line)
    return 0 if result.held else 1


if __name__ == "__main__":
    run_app(app)
