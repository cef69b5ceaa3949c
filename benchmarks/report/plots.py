"""Two plots as SVG: the ratios beside their targets, and the processor time per call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pygal
from pygal.style import CleanStyle

from benchmarks.figures import Measurement
from benchmarks.processes import LOAD, OTHER
from benchmarks.rows import Figure, Row

ROW_HEIGHT: Final = 34
HEADER_HEIGHT: Final = 130


def plots(measured: Sequence[Measurement]) -> dict[str, bytes]:
    """By file name. Only rates of calls divided by the empty method's: they have one scale."""
    shown = [one for one in measured if one.is_for_target and _is_rate_to_empty(one.row)]
    if not shown:
        return {}
    return {"ratios.svg": _ratios(shown), "processor-time.svg": _processor_time(shown)}


def _is_rate_to_empty(row: Row) -> bool:
    at_same_callers = row.yardstick_callers is None
    return row.figure is Figure.RATE and row.yardstick == "empty" and at_same_callers


def _ratios(shown: Sequence[Measurement]) -> bytes:
    chart = _chart(pygal.HorizontalBar, shown, "Rate ÷ rate of an empty method")
    # The chart begins at the bottom.
    chart.add("target", [one.row.target.value if one.row.target else None for one in shown[::-1]])
    chart.add("measured", [round(one.ratio, 3) for one in shown[::-1]])
    return bytes(chart.render())


def _processor_time(shown: Sequence[Measurement]) -> bytes:
    chart = _chart(pygal.HorizontalStackedBar, shown, "Processor time per unit, µs")
    for name in sorted({name for one in shown for name in one.cpu_us} - {LOAD, OTHER}):
        chart.add(name, [round(one.cpu_us.get(name, 0.0)) for one in shown[::-1]])
    return bytes(chart.render())


def _chart(kind: Any, shown: Sequence[Measurement], title: str) -> Any:
    chart = kind(
        title=title,
        width=1000,
        height=HEADER_HEIGHT + ROW_HEIGHT * len(shown),
        js=(),
        style=CleanStyle(font_family="sans-serif", value_font_size=11, label_font_size=11),
        legend_at_bottom=True,
        disable_xml_declaration=False,
        print_values=True,
        truncate_label=-1,
        truncate_legend=-1,
    )
    chart.x_labels = [one.subjects[0].subject for one in shown[::-1]]
    return chart
