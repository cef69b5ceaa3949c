"""The table that grows in the terminal while the lab runs; elsewhere a line per run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from benchmarks.lab.experiments import EXPERIMENTS
from benchmarks.lab.figures import Cell
from benchmarks.lab.report.columns import count, milliseconds, remark, spread_text
from benchmarks.lab.report.tables import Sizes

HEAD: Final = ("ok/ref/err", "wrong", "wall ms", "spread", "p99 ms", "db ms")


class LiveTable:
    """Shows the experiment that runs. A table stays when the next one begins."""

    def __init__(self, console: Console, live: Live | None, sizes: Sizes) -> None:
        self._console = console
        self._live = live
        self._sizes = sizes
        self._cells: dict[str, Cell] = {}
        self._experiment = ""

    def show(self, cell: Cell) -> None:
        """Add the cell, or replace it."""
        texts = self._texts(cell)
        if self._live is None:
            named = [f"{text} {name}" for name, text in zip(HEAD, texts[:-1], strict=True)]
            line = f"{cell.experiment} {cell.strategy}: {', '.join(named)} {texts[-1]}"
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)
            return
        if cell.experiment != self._experiment:
            if self._cells:
                self._console.print(self._table())
            self._experiment, self._cells = cell.experiment, {}
        self._cells[cell.strategy] = cell
        self._live.update(self._table(), refresh=True)

    def _texts(self, cell: Cell) -> list[str]:
        median = cell.median
        return [
            "/".join(map(count, (median.succeeded, median.refused, median.errored))),
            count(median.wrong),
            milliseconds(median.wall_ms),
            spread_text(cell),
            milliseconds(median.p99_ms),
            milliseconds(median.database_ms),
            remark(cell, self._sizes[cell.experiment]),
        ]

    def _table(self) -> Table:
        title = EXPERIMENTS[self._experiment].title
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("strategy", no_wrap=True)
        for name in HEAD:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("remark")
        for cell in self._cells.values():
            style = "red" if cell.worst else None
            table.add_row(cell.strategy, *self._texts(cell), style=style)
        return table


@contextmanager
def live_table(sizes: Sizes) -> Iterator[LiveTable]:
    """A live table on a terminal, lines elsewhere."""
    console = Console()
    if not console.is_terminal:
        yield LiveTable(console, None, sizes)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveTable(console, live, sizes)
