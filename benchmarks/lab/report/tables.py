"""The tables of the lab as rows of text, for HTML and Markdown alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.lab.experiments import EXPERIMENTS
from benchmarks.lab.figures import Cell
from benchmarks.lab.names import NAMES
from benchmarks.lab.report.columns import (
    COLUMNS,
    DASH,
    Footnotes,
    remark,
    row_of,
    shown_name,
    spread_text,
    verdict,
)
from benchmarks.lab.size import Size
from benchmarks.lab.theirs import THEIRS

Table = tuple[list[str], list[list[str]]]
"""A head and rows."""
Sizes = Mapping[str, Size]
"""By experiment."""


def cells_of(cells: Sequence[Cell], experiment: str) -> list[Cell]:
    return [cell for cell in cells if cell.experiment == experiment]


def overview(cells: Sequence[Cell]) -> tuple[Table, list[str]]:
    """Strategies by experiments, and the footnotes of the cells that would mean nothing."""
    found = {(cell.experiment, cell.strategy): cell for cell in cells}
    notes = Footnotes()
    shown = [key for key in EXPERIMENTS if cells_of(cells, key)]
    rows = []
    for strategy, name in NAMES.items():
        row = [name.shown, name.complexity]
        for key in shown:
            cell = found.get((key, strategy))
            if cell is not None:
                row.append(verdict(cell.median, cell.worst))
            elif strategy in EXPERIMENTS[key].strategies:
                row.append("not run")
            else:
                row.append(f"{DASH} {notes.of(key, strategy)}")
        rows.append(row)
    return (["strategy", "complexity", *shown], rows), notes.lines()


def full_table(cells: Sequence[Cell], experiment: str, size: Size) -> Table:
    """All columns of an experiment. Columns in which no strategy has a figure are left out."""
    rows = [(cell, row_of(cell)) for cell in cells_of(cells, experiment)]
    used = [
        at for at in range(len(COLUMNS)) if any(texts[at] not in {DASH, "0"} for _, texts in rows)
    ]
    head = ["strategy", *(COLUMNS[at][1] for at in used), "spread", "the reports", "remark"]
    body = [
        [
            shown_name(cell.strategy),
            *(texts[at] for at in used),
            spread_text(cell),
            THEIRS.get((experiment, cell.strategy), ""),
            remark(cell, size),
        ]
        for cell, texts in rows
    ]
    return (head, body)
