"""The part of the guide that a run writes: what was found, which to choose, and the tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.lab.choices import CHOICE
from benchmarks.lab.experiments import EXPERIMENTS
from benchmarks.lab.figures import Cell
from benchmarks.lab.found import FOUND
from benchmarks.lab.names import NAMES
from benchmarks.lab.report.columns import (
    DASH,
    count,
    milliseconds,
    remark,
    shown_name,
    spread_text,
    workload,
)
from benchmarks.lab.report.tables import Sizes, Table, cells_of, overview
from benchmarks.lab.sentences import Medians, Sentence
from benchmarks.lab.theirs import THEIRS
from benchmarks.report.markdown import table as markdown_table
from deploy.local.plan import PROJECT

PAGE: Final = PROJECT / "docs" / "guides" / "choosing-a-strategy.md"
FOLDER: Final = PAGE.with_suffix("")
CSV: Final = FOLDER / "runs.csv"
HTML: Final = FOLDER / "report.html"
_HEAD: Final = (
    *("strategy", "complexity", "succeeded / refused / errored", "wrong updates", "wall ms"),
    *(
        "spread",
        "p99 ms",
        "p99 of the refused",
        "database ms",
        "connection hold ms",
        "the reports",
        "remark",
    ),
)


def borne_out(cells: Sequence[Cell]) -> tuple[list[Sentence], list[str]]:
    """The sentences whose conditions hold, and for each other one what does not.

    Of the sentences of a group one has to hold.
    """
    medians = Medians(cells)
    true, untrue = [], []
    groups = {sentence.group for sentence in FOUND if not medians.broken(sentence)}
    for sentence in FOUND:
        broken = medians.broken(sentence)
        if not broken:
            true.append(sentence)
        elif not sentence.group or sentence.group not in groups:
            untrue.append(f"{sentence.text[:60]}...: not {'; not '.join(broken)}")
    return true, untrue


def sentences_of(cells: Sequence[Cell]) -> list[str]:
    """All sentences that hold, with their figures."""
    medians = Medians(cells)
    return [medians.text(sentence) for sentence in borne_out(cells)[0]]


def block(cells: Sequence[Cell], sizes: Sizes) -> str:
    """What stands between the marks of the page."""
    return "\n".join(_block(cells, sizes))


def _block(cells: Sequence[Cell], sizes: Sizes) -> Iterator[str]:
    medians = Medians(cells)
    true, _ = borne_out(cells)

    def of_topic(topic: str) -> Iterator[str]:
        for sentence in true:
            if sentence.topic == topic:
                yield f"- {medians.text(sentence)}"
        yield ""

    yield "## Which to choose"
    yield ""
    yield from of_topic(CHOICE)
    yield "## Overview"
    yield ""
    yield "A cell has the wall time, or the wrong updates that the audit found."
    yield ""
    grid, notes = overview(cells)
    yield from markdown_table(*grid)
    yield ""
    yield from (f"- {note}" for note in notes)
    yield ""
    for key, experiment in EXPERIMENTS.items():
        if not cells_of(cells, key):
            continue
        yield f"## {experiment.title}"
        yield ""
        yield workload(experiment, sizes[key])
        yield ""
        yield from of_topic(key)
        yield from markdown_table(*_short_table(cells, key, sizes))
        yield ""


def _short_table(cells: Sequence[Cell], key: str, sizes: Sizes) -> Table:
    rows = []
    for cell in cells_of(cells, key):
        median = cell.median
        outcomes = (median.succeeded, median.refused, median.errored)
        rows.append(
            [
                shown_name(cell.strategy),
                NAMES[cell.strategy].complexity,
                " / ".join(map(count, outcomes)),
                f"**{count(median.wrong)}**" if median.wrong else "0",
                milliseconds(median.wall_ms),
                spread_text(cell),
                milliseconds(median.p99_ms),
                milliseconds(median.refused_p99_ms),
                milliseconds(median.database_ms),
                milliseconds(median.connection_ms),
                THEIRS.get((key, cell.strategy), ""),
                remark(cell, sizes[key]) or DASH,
            ]
        )
    return (list(_HEAD), rows)


def between(mark: str) -> re.Pattern[str]:
    """What stands after ``<!-- mark -->``, up to ``<!-- end mark -->``."""
    return re.compile(rf"(?<=<!-- {mark} -->\n).*?(?=<!-- end {mark} -->)", re.DOTALL)


def put(page: Path, mark: str, text: str) -> None:
    """Replace what stands between the marks of a page."""
    before = page.read_text(encoding="utf-8")
    page.write_text(between(mark).sub(lambda _match: text, before), encoding="utf-8")
