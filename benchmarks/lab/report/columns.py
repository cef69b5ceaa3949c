"""The columns of the tables: a heading and a text for each figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.lab.experiment import Experiment
from benchmarks.lab.figures import Cell, Figures
from benchmarks.lab.names import NAMES, reason
from benchmarks.lab.size import Size

DASH: Final = "–"
NO_FIGURE: Final = (
    f"{DASH} in a figure: the strategy has no such thing. A lane's own waits and holds are not "
    "timed; the time in its queue is in the latencies."
)


def count(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:,.0f}"


def milliseconds(value: float) -> str:
    if math.isnan(value):
        return DASH
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


COLUMNS: Final[Sequence[tuple[str, str, Callable[[float], str]]]] = (
    ("succeeded", "succeeded", count),
    ("refused", "refused", count),
    ("errored", "errored", count),
    ("lost", "lost", count),
    ("doubled", "doubled", count),
    ("oversold", "oversold", count),
    ("wall_ms", "wall ms", milliseconds),
    ("p50_ms", "p50 ms", milliseconds),
    ("p99_ms", "p99 ms", milliseconds),
    ("refused_p99_ms", "p99 of the refused ms", milliseconds),
    ("database_ms", "database ms", milliseconds),
    ("connection_ms", "connection hold ms", milliseconds),
    ("lock_wait_ms", "lock wait ms", milliseconds),
    ("lock_hold_ms", "lock hold ms", milliseconds),
    ("queue_length", "queue length", count),
    ("conflicts", "conflicts", count),
    ("deadlocks", "deadlocks", count),
    ("first_check", "first check", count),
    ("gateway_calls", "gateway calls", count),
    ("redis_calls", "Redis calls", count),
    ("redis_messages", "messages", count),
)
"""Attribute of ``Figures``, heading, and how it is shown."""
MEANINGS: Final = (
    "Figures are medians of the runs of a cell. *Lost*, *doubled* and *oversold*: found in the "
    "tables by an audit after each run, against what the callers were told. *Database* and "
    "*connection hold*: the time that all sessions together spent in statements, and in statements "
    "or open transactions, waits included, by PostgreSQL's own count (`pg_stat_database`). *Lock "
    "wait* and *lock hold*: the mean of each request that locks, a row or a key. *Queue length*: "
    "the most requests that waited at once for a lock, a lane or a queue. *First check*: requests "
    "that a read without locks, or a mark, refused. *Redis calls*: commands sent, a script as one; "
    "*messages*: published."
)


def row_of(cell: Cell) -> list[str]:
    """The texts of a cell, in the order of COLUMNS."""
    median = cell.median
    return [show(getattr(median, name)) for name, _, show in COLUMNS]


def shown_name(strategy: str) -> str:
    return NAMES[strategy].shown


def remark(cell: Cell, size: Size) -> str:
    """What a reader must know before the figures: wrong books, or a time limit that passed."""
    texts = []
    if cell.worst:
        texts.append("WRONG BOOKS")
    if unfinished := max(run.unfinished for run in cell.runs):
        asked = cell.runs[-1].asked
        done = asked - unfinished
        texts.append(f"did not finish in {size.limit_s:g} s: {done:,.0f} of {asked:,.0f}")
    return "; ".join(texts)


def spread_text(cell: Cell) -> str:
    return f"{cell.spread:.0%}" if len(cell.runs) > 1 else DASH


def workload(experiment: Experiment, size: Size) -> str:
    """The experiment's workload in a sentence."""
    names = ("requests", "things", "copies", "quantity", "amount", "work_ms", "callers")
    return experiment.what.format(**{name: getattr(size, name) for name in names})


class Footnotes:
    """Numbers the reasons of missing cells in the order in which they are first named."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, experiment: str, strategy: str) -> int:
        return self._numbers.setdefault(reason(experiment, strategy), len(self._numbers) + 1)

    def lines(self) -> list[str]:
        return [f"{DASH} {number}: {text}." for text, number in self._numbers.items()]


def verdict(median: Figures, worst: float) -> str:
    """A cell of the overview."""
    if worst:
        return f"wrong ({count(median.wrong)})"
    share = median.succeeded
    return f"{milliseconds(median.wall_ms)} ms, {count(share)} ok"
