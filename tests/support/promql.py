"""What aggregates a metric in a PromQL expression, as far as a test of queries needs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_AGGREGATIONS: Final = frozenset(
    {
        *("sum", "avg", "count", "count_values", "quantile", "stddev", "stdvar"),
        *("min", "max", "group", "topk", "bottomk"),
    }
)
_TOKEN: Final = re.compile(r"\"(?:\\.|[^\"])*\"|'(?:\\.|[^'])*'|[A-Za-z_:][\w:]*|[(){}]")


def aggregations_of(metric: str, expression: str) -> Iterator[str]:
    """Of each use of the metric: the aggregation nearest to it, or ''."""
    around: list[str] = []
    """What each open parenthesis belongs to."""
    word = ""
    grouped = ""
    """The aggregation whose ``by (…)`` or ``without (…)`` was the last."""
    in_braces = False
    for token in _TOKEN.findall(expression):
        if token in "{}":
            in_braces = token == "{"
        elif in_braces:
            continue
        elif token == "(":
            around.append(word or grouped)
            word = ""
        elif token == ")":
            closed = around.pop() if around else ""
            # The expression after ``sum by (…)`` is what sum aggregates.
            grouped = closed.removeprefix("by ") if closed.startswith("by ") else ""
            word = ""
        elif token in {"by", "without"}:
            word = f"by {word}"
        elif token == metric:
            yield next((each for each in reversed(around) if each in _AGGREGATIONS), "")
        else:
            word = token
