"""All cells in turn, pass after pass, so that the noise of the machine meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.lab.experiment import Experiment
from benchmarks.lab.figures import Cell, Figures
from benchmarks.lab.laboratory import Laboratory
from benchmarks.lab.size import Size

SEED: Final = 20_260_101


@dataclass(frozen=True, slots=True)
class Limits:
    """How often and how long the cells are run."""

    passes: int
    budget_s: float
    """No further pass begins that would end after it, judged by the one before."""


async def run_passes(
    laboratory: Laboratory,
    cells: Sequence[tuple[Experiment, str]],
    sizes: Mapping[str, Size],
    limits: Limits,
    on_run: Callable[[Cell], None],
) -> list[Cell]:
    """Every cell once, then again while the limits allow; ``on_run`` is called after each run.

    A cell that ran out of its time limit is not run again: it would take as long, and show the
    same.
    """
    runs: dict[tuple[str, str], list[Figures]] = {}
    began = time.monotonic()
    for number in range(limits.passes):
        pass_began = time.monotonic()
        for experiment, strategy in cells:
            of_cell = runs.setdefault((experiment.key, strategy), [])
            if of_cell and of_cell[-1].unfinished:
                continue
            size = sizes[experiment.key]
            of_cell.append(await laboratory.run(experiment, strategy, size, SEED + number))
            on_run(Cell(experiment.key, strategy, tuple(of_cell)))
        now = time.monotonic()
        if now - began + (now - pass_began) > limits.budget_s:
            break
    return [Cell(*names, tuple(of_cell)) for names, of_cell in runs.items()]
