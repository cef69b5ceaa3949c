"""What the guide says was found: each sentence with the condition on the figures that it needs.

A text names figures in braces, ``{deduct/none.lost}``: experiment, strategy and figure. A condition
compares two of them, or one with a number: ``deduct/lane.wall_ms < deduct/pessimistic.wall_ms``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.lab.figures import Cell, Figures
from benchmarks.lab.report.columns import count, milliseconds

_COMPARISON: Final = re.compile(r"(?P<left>.+?) (?P<sign><=|>=|<|>|==) (?P<right>.+)")
_FIGURE: Final = re.compile(r"(?P<cell>[\w-]+/[\w+-]+)\.(?P<name>\w+)")
_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of the guide, and what must hold of the figures for it to be true."""

    topic: str
    text: str
    holds: tuple[str, ...]
    group: str = ""
    """Of several sentences with one group, one holds."""

    @property
    def figures(self) -> list[tuple[str, str]]:
        """The figures that it names: cell and name."""
        named = [self.text, *self.holds]
        return [
            (match["cell"], match["name"]) for text in named for match in _FIGURE.finditer(text)
        ]


class Medians:
    """The medians of a run's cells, by ``experiment/strategy``."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._of = {f"{cell.experiment}/{cell.strategy}": cell.median for cell in cells}

    def broken(self, sentence: Sentence) -> list[str]:
        """The conditions that do not hold, or whose figures this run has not."""
        return [text for text in sentence.holds if not self._holds(text)]

    def text(self, sentence: Sentence) -> str:
        """The sentence with its figures. Raises KeyError for one that the run has not."""
        return sentence.text.format(**{cell: _Shown(each) for cell, each in self._of.items()})

    def _holds(self, condition: str) -> bool:
        match = _COMPARISON.fullmatch(condition)
        assert match is not None, condition
        try:
            left, right = self._value(match["left"]), self._value(match["right"])
        except KeyError:
            return False
        return _COMPARE[match["sign"]](left, right)

    def _value(self, text: str) -> float:
        """A number, a figure, or a number times a figure."""
        product = 1.0
        for factor in text.split(" * "):
            named = _FIGURE.fullmatch(factor)
            if named is None:
                product *= float(factor)
            else:
                product *= getattr(self._of[named["cell"]], named["name"])
        return product


class _Shown:
    """The figures of a cell as texts."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def __getattr__(self, name: str) -> str:
        value: float = getattr(self._figures, name)
        return f"{milliseconds(value)} ms" if name.endswith("_ms") else count(value)
