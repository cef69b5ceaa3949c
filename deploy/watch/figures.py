"""Numbers and times as texts of a few characters, and sparklines."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from rich.text import Text

from deploy.monitoring.panels import Limits

NOTHING: Final = "–"
_BARS: Final = "▁▂▃▄▅▆▇█"
QUIET, GOOD, WARNING, BAD = "bright_black", "green", "yellow", "bold red"


def number(value: float) -> str:
    """A count or a rate: 0, 0.4, 12, 3.4k."""
    if math.isnan(value):
        return NOTHING
    if value == 0:
        return "0"
    if value < 0.1:
        return "<0.1"
    if value < 9.95:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.0f}" if value < 9_999.5 else f"{value / 1_000:.0f}k"


def seconds(value: float) -> str:
    """A time: 0.4 ms, 12 ms, 3.1 s, 5 min, 2 h."""
    if math.isnan(value):
        return NOTHING
    if value < 0.0095:
        return f"{value * 1_000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1_000:.0f} ms"
    if value < 99.5:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 5_970 else f"{value / 3_600:.0f} h"


def share(value: float) -> str:
    """A share of 1, in percent."""
    return NOTHING if math.isnan(value) else f"{100 * value:.2f} %"


def styled(text: str, value: float, limits: Limits | None = None) -> Text:
    """The text, quiet if there is nothing to see, and in a colour from a limit on."""
    if math.isnan(value) or value == 0:
        return Text(text, QUIET)
    if limits is None or value < limits.warning:
        return Text(text)
    return Text(text, BAD if value >= limits.bad else WARNING)


def sparkline(values: Iterable[float], width: int) -> Text:
    """The values as bars, the latest at the right; the highest fills the line."""
    shown = list(values)[-width:]
    highest = max(shown, default=0.0)
    bars = "".join(
        _BARS[min(len(_BARS) - 1, int(value / highest * len(_BARS)))] if highest else _BARS[0]
        for value in shown
    )
    return Text(bars.rjust(width), "cyan")
