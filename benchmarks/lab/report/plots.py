"""Two plots of an experiment: what became of the requests, and how long it took."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import pygal
from pygal.style import CleanStyle

from benchmarks.lab.experiments import EXPERIMENTS
from benchmarks.lab.figures import Cell
from benchmarks.lab.report.columns import shown_name
from benchmarks.lab.report.tables import cells_of

# It would look for charts of other packages, of which there are none, in a form that Python warns
# of at each import from then on.
sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, pygal.PluginImportFixer)]

ROW_HEIGHT: Final = 30
HEADER_HEIGHT: Final = 130
OUTCOMES: Final = (
    ("succeeded", "#4c9f70"),
    ("refused", "#b8c4bb"),
    ("errored", "#e8a33d"),
    ("unfinished", "#7d6b91"),
    ("wrong", "#c1292e"),
)
"""Of which "wrong" is found by the audit: lost, doubled and oversold."""
TIMES: Final = (("wall_ms", "wall"), ("p99_ms", "p99"), ("p50_ms", "p50"))


def plots(cells: Sequence[Cell]) -> dict[str, str]:
    """By file name; SVG."""
    found = {}
    for key in EXPERIMENTS:
        of_it = cells_of(cells, key)[::-1]
        if of_it:
            found[f"{key}-outcomes.svg"] = _outcomes(of_it)
            found[f"{key}-times.svg"] = _times(of_it)
    return found


def _outcomes(cells: Sequence[Cell]) -> str:
    colors = tuple(color for _, color in OUTCOMES)
    title = "Requests by outcome; wrong updates by the audit"
    chart = _chart(pygal.HorizontalStackedBar, cells, title, colors)
    for name, _ in OUTCOMES:
        chart.add(name, [getattr(cell.median, name) or None for cell in cells])
    return str(chart.render(is_unicode=True))


def _times(cells: Sequence[Cell]) -> str:
    colors = ("#33658a", "#86bbd8", "#d3e6f0")
    title = "Milliseconds (logarithmic)"
    chart = _chart(pygal.HorizontalBar, cells, title, colors, logarithmic=True)
    for name, shown in TIMES:
        chart.add(shown, [round(max(0.1, getattr(cell.median, name)), 1) for cell in cells])
    return str(chart.render(is_unicode=True))


def _chart(
    kind: Any, cells: Sequence[Cell], title: str, colors: tuple[str, ...], **options: Any
) -> Any:
    chart = kind(
        title=title,
        width=900,
        height=HEADER_HEIGHT + ROW_HEIGHT * len(cells),
        js=(),
        style=CleanStyle(
            font_family="sans-serif", value_font_size=10, label_font_size=11, colors=colors
        ),
        legend_at_bottom=True,
        disable_xml_declaration=True,
        truncate_label=-1,
        truncate_legend=-1,
        **options,
    )
    chart.x_labels = [shown_name(cell.strategy) for cell in cells]
    return chart
