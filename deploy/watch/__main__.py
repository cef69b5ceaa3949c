"""`python -m deploy.watch`: what a running stack does, live in the terminal."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Final

import cyclopts
from rich.console import Console
from rich.live import Live

from deploy.local.command_line import Flag, make_app, run_app
from deploy.local.errors import RunnerError
from deploy.local.plan import DEFAULT_DATA_DIR
from deploy.local.state import metrics_pages
from deploy.local.stop_signals import Stopped, run_stoppable
from deploy.monitoring.views import VIEWS
from deploy.watch.frame import HEIGHT, WIDTH, frame
from deploy.watch.history import History
from deploy.watch.pages import PageReader

NAMES: Final = frozenset(
    series.name
    for view in VIEWS
    for panel in view.panels
    for line in panel.lines
    for series in line.query.series()
)
INTERVAL_MIN_S, INTERVAL_MAX_S = 0.2, 60.0

app = make_app("deploy.watch", "Show what a running stack does, from its replicas' metrics.")

Interval = Annotated[float, cyclopts.Parameter(help="Seconds between two readings.")]


@app.default
def watch(
    *, data_dir: Path = DEFAULT_DATA_DIR, interval_s: Interval = 1.0, once: Flag = False
) -> int:
    """Draw calls, errors, lanes, locks, sagas and money in flight until Ctrl-C.

    Rates and times are those of the last 10 seconds. Nothing needs to be installed: the metrics
    pages of the replicas are read.

    Parameters
    ----------
    data_dir
        The data directory of the stack.
    once
        Print one picture of 100 by 30 characters, and end.
    """
    if not INTERVAL_MIN_S <= interval_s <= INTERVAL_MAX_S:
        raise RunnerError(f"interval must be from {INTERVAL_MIN_S:g} to {INTERVAL_MAX_S:g} s")
    try:
        return run_stoppable(_watch(data_dir.absolute(), interval_s, once=once))
    except Stopped:
        return 0


async def _watch(data_dir: Path, interval_s: float, *, once: bool) -> int:
    history = History()
    console = Console(highlight=False)
    async with PageReader(metrics_pages(data_dir), NAMES) as reader:
        history.add(await reader.read())
        if not history.now.replicas:
            raise RunnerError(f"no replica of the stack in {data_dir} answers: run `make up` first")
        await asyncio.sleep(interval_s)
        history.add(await reader.read())
        if once:
            console = Console(highlight=False, width=WIDTH)
            console.print(frame(reader.replicas, history), height=HEIGHT)
            return 0
        with Live(frame(reader.replicas, history), console=console, screen=True) as live:
            while True:
                await asyncio.sleep(interval_s)
                history.add(await reader.read())
                live.update(frame(reader.replicas, history), refresh=True)


if __name__ == "__main__":
    run_app(app)
