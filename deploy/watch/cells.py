"""Tables without lines, and the texts in their cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from deploy.monitoring.panels import Limits, Panel
from deploy.monitoring.queries import Found, Group
from deploy.watch.figures import NOTHING, QUIET, number, seconds, styled
from deploy.watch.history import History

ALARM = Limits(0.0, 0.0)
"""Of a figure that has to be 0."""


def table(name: str, *figures: str) -> Table:
    """Names at the left, which get the space that is left, and figures at the right."""
    made = Table(box=None, padding=(0, 1, 0, 0), header_style=QUIET, pad_edge=False, expand=True)
    made.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1, min_width=7)
    for figure_name in figures:
        made.add_column(figure_name, justify="right", no_wrap=True)
    return made


def pairs() -> Table:
    """A name and a text in each row."""
    made = Table(box=None, padding=(0, 1, 0, 0), show_header=False, pad_edge=False, expand=True)
    made.add_column(style=QUIET, no_wrap=True)
    made.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    return made


def figure(value: float, limits: Limits | None = None) -> Text:
    return styled(number(value), value, limits)


def time(value: float, limits: Limits | None = None) -> Text:
    return styled(seconds(value) if value else NOTHING, value, limits)


def highest(history: History, panel: Panel) -> list[tuple[Group, float]]:
    """The groups of a panel whose value is not 0, the highest first."""
    found = [item for item in history.values(panel).items() if item[1] > 0]
    return sorted(found, key=lambda item: -item[1])


def longest(history: History, panel: Panel) -> float:
    """The highest value of a panel's first line; NaN if nothing was observed."""
    known = [value for value in history.values(panel).values() if not math.isnan(value)]
    return max(known, default=math.nan)


def summed(found: Found, part: int) -> dict[str, float]:
    """The sums by one of the labels."""
    sums: dict[str, float] = {}
    for group, value in found.items():
        sums[group[part]] = sums.get(group[part], 0.0) + value
    return sums


def total(found: Found) -> float:
    """The sum of all groups; NaN if there are none."""
    return sum(found.values()) if found else math.nan


def named(values: Iterable[tuple[str, float]], alarms: Mapping[str, Limits] = {}) -> Text:
    """``held 12  busy 3``: each figure after its name, in a colour if its name is in ``alarms``."""
    parts = [
        Text.assemble((f"{name} ", QUIET), figure(value, alarms.get(name)))
        for name, value in values
    ]
    return Text("  ").join(parts) if parts else Text("none", QUIET)


def named_times(values: Mapping[str, float]) -> Text:
    """``50 % 1.2 s  99 % 3.4 s``."""
    return Text("  ").join(
        Text.assemble((f"{name} ", QUIET), time(value)) for name, value in values.items()
    )
