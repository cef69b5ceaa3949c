"""What the demo prints: progress bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH: Final = 110
PLAIN_STEPS: Final = 4
"""Lines that a phase prints if it cannot draw a bar."""
TITLE_WIDTH: Final = 30
GOOD, WARNING, BAD = "green", "bold yellow", "bold red"


class Phase:
    """The progress of one phase."""

    def __init__(self, output: Output, title: str, total: int) -> None:
        self._output = output
        self._title = title
        self._total = total
        self.done = 0
        self._printed = 0
        self._task = output.progress.add_task(title, total=total) if output.live else None

    def step(self) -> None:
        self.reach(self.done + 1)

    def reach(self, done: int) -> None:
        self.done = done
        if self._task is not None:
            self._output.progress.update(self._task, completed=done)
            return
        part = PLAIN_STEPS * done // self._total if self._total else PLAIN_STEPS
        if part > self._printed:
            self._printed = part
            self._output.print(f"{self._title}: {done} of {self._total}")

    async def counted(self, work: Awaitable[None]) -> None:
        """Wait for ``work``, then count it."""
        await work
        self.step()


class _Bars(Progress):
    """The bars of the phases, and above them a drawing that changes."""

    above: str = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.above:
            yield Text(self.above)
        yield from super().get_renderables()


class Output:
    """Prints texts as they are, without interpreting markup in them."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self.live = self._console.is_terminal and not self._console.is_dumb_terminal
        if not self.live:
            self._console.width = PLAIN_WIDTH
        self.progress = _Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn(f"{{task.description:<{TITLE_WIDTH}}}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )

    def drawing(self) -> AbstractContextManager[object]:
        """Draws the bars of the phases in the block."""
        return self.progress if self.live else nullcontext()

    def print(self, text: str, style: str | None = None) -> None:
        # Without line breaks: long texts are paths, or commands to paste.
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def show_map(self, lines: Sequence[str], title: str, *, last: bool = False) -> None:
        """Draw the map above the bars. It is printed when it is the last, or has to be plain."""
        text = "\n".join([title, *lines])
        if self.live:
            self.progress.above = "" if last else text
        if last or not self.live:
            self.print(text)

    def heading(self, text: str) -> None:
        self.print(f"\n{text}", "bold")

    def table(self, title: str, rows: Iterable[Sequence[str]]) -> None:
        self.heading(title)
        table = Table(box=SIMPLE_HEAD, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        self._console.print(table)
