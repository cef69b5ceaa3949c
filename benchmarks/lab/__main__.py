"""`python -m benchmarks.lab`: run the same races under each strategy, audit, and report."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import cyclopts

from benchmarks.lab.experiment import Experiment
from benchmarks.lab.experiments import EXPERIMENTS
from benchmarks.lab.figures import Cell
from benchmarks.lab.laboratory import opened_laboratory, running_servers
from benchmarks.lab.passes import Limits, run_passes
from benchmarks.lab.report.files import RESULTS, publish, write_report
from benchmarks.lab.report.guide import borne_out
from benchmarks.lab.report.live import live_table
from benchmarks.lab.report.tables import Sizes
from benchmarks.lab.size import PROCESSES
from benchmarks.report.origin import machine_lines
from deploy.local.command_line import Flag, make_app, report, run_app
from deploy.local.data_dir import locked
from deploy.local.errors import RunnerError
from deploy.local.plan import PROJECT
from deploy.local.stop_signals import run_stoppable

FULL: Final = Limits(passes=5, budget_s=45 * 60)
QUICK: Final = Limits(passes=3, budget_s=4.5 * 60)
DATA_DIR: Final = PROJECT / ".tally"
FOLDER: Final = "lab"
"""In the data directory; removed at the end of a run."""

app = make_app("benchmarks.lab", "Run the same races under each locking strategy.")


@app.default
def lab(
    *,
    quick: Flag = False,
    cells: str = "",
    passes: Annotated[
        int | None, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1))
    ] = None,
    results: Path = RESULTS,
    data_dir: Path = DATA_DIR,
    publish_page: Annotated[Flag, cyclopts.Parameter(name="--publish")] = False,
) -> int:
    """Exit 0 only if every strategy that should keep the books did, and, with --publish, if the
    others did not, and every sentence of the guide holds.

    Parameters
    ----------
    quick
        The sizes divided by ten where requests are many, and fewer passes.
    cells
        Experiments, or experiment/strategy, separated by commas.
    passes
        How often each cell is run, at most.
    results
        Where the report is written.
    data_dir
        A directory on a disk like production's: the data of a run are in its folder lab.
    publish
        Also put the results into docs/guides/choosing-a-strategy.md.
    """
    chosen = selected(cells)
    if publish_page and cells:
        raise RunnerError("--publish needs all cells")
    size = "quick" if quick else "full"
    sizes = {key: getattr(each, size) for key, each in EXPERIMENTS.items()}
    default = QUICK if quick else FULL
    limits = Limits(passes or default.passes, default.budget_s)
    began = time.monotonic()
    done = _run(chosen, sizes, limits, data_dir.absolute() / FOLDER)
    took_s = time.monotonic() - began
    origin = [*machine_lines(took_s), f"Sizes: {size}; runs of each cell: {_passes(done)}"]
    write_report(done, sizes, size, origin, results)
    failures = _wrong(done)
    if publish_page:
        publish(done, sizes, size, origin)
        failures += [f"the guide leaves out: {text}" for text in borne_out(done)[1]]
        failures += _harmless(done)
    sys.stderr.writelines(f"{line}\n" for line in failures)
    report(f"{took_s:.0f} s; the report is {results / 'report.html'}")
    return 1 if failures else 0


def selected(names: str) -> list[tuple[Experiment, str]]:
    """The cells that the option names; all for an empty text. Raises RunnerError."""
    every = [(each, strategy) for each in EXPERIMENTS.values() for strategy in each.strategies]
    if not names:
        return every
    chosen = []
    for name in names.split(","):
        found = [cell for cell in every if name in {cell[0].key, f"{cell[0].key}/{cell[1]}"}]
        if not found:
            raise RunnerError(f"no cell {name!r}; experiments: {', '.join(EXPERIMENTS)}")
        chosen += found
    return chosen


def _run(
    cells: Sequence[tuple[Experiment, str]], sizes: Sizes, limits: Limits, folder: Path
) -> list[Cell]:
    with locked(folder):
        try:
            with running_servers(folder) as servers, live_table(sizes) as table:

                async def run() -> list[Cell]:
                    async with opened_laboratory(servers, PROCESSES) as laboratory:
                        return await run_passes(laboratory, cells, sizes, limits, table.show)

                return run_stoppable(run())
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _passes(cells: Sequence[Cell]) -> str:
    counts = sorted({len(cell.runs) for cell in cells})
    return f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])


def _wrong(cells: Sequence[Cell]) -> list[str]:
    """The cells of strategies that should have kept the books, and did not."""
    return [
        f"{cell.experiment}/{cell.strategy}: {cell.worst:g} wrong updates"
        for cell in cells
        if cell.worst and EXPERIMENTS[cell.experiment].strategies[cell.strategy].right
    ]


def _harmless(cells: Sequence[Cell]) -> list[str]:
    """The cells of wrong strategies whose damage did not show: what they say is not shown."""
    return [
        f"{cell.experiment}/{cell.strategy} is wrong, and its books balance: run it again"
        for cell in cells
        if not cell.worst and not EXPERIMENTS[cell.experiment].strategies[cell.strategy].right
    ]


if __name__ == "__main__":
    run_app(app)
