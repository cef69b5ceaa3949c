"""Every run of every cell as a line of CSV, which the guide is made from."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Final

from benchmarks.lab.figures import NAMES, NONE, Cell, Figures

_HEAD: Final = ("size", "experiment", "strategy", "run")


def as_csv(cells: Sequence[Cell], size: str) -> str:
    """A figure that a strategy does not have is empty. ``size``: "full" or "quick"."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*_HEAD, *NAMES))
    for cell in cells:
        for number, run in enumerate(cell.runs, 1):
            figures = [_text(getattr(run, name)) for name in NAMES]
            writer.writerow((size, cell.experiment, cell.strategy, number, *figures))
    return out.getvalue()


def from_csv(text: str) -> tuple[list[Cell], str]:
    """The cells that ``as_csv`` wrote, and their size."""
    found: dict[tuple[str, str], list[Figures]] = {}
    size = ""
    for line in csv.DictReader(io.StringIO(text)):
        figures = {name: float(line[name]) if line[name] else NONE for name in NAMES}
        size = line["size"]
        found.setdefault((line["experiment"], line["strategy"]), []).append(Figures(**figures))
    return [Cell(*names, tuple(runs)) for names, runs in found.items()], size


def _text(figure: float) -> str:
    return "" if math.isnan(figure) else f"{figure:.3f}".rstrip("0").rstrip(".")
