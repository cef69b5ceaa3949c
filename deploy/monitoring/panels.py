"""What a panel is. The panels themselves are in ``deploy/monitoring/views``, one file per view."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from deploy.monitoring.queries import Query


class Unit(enum.StrEnum):
    """Units of panels; the values are Grafana's names."""

    NUMBER = "short"
    SECONDS = "s"
    PER_SECOND = "cps"
    PER_MINUTE = "cpm"
    SHARE = "percentunit"
    BYTES = "bytes"
    SWITCH = "bool_yes_no"


class Shape(enum.Enum):
    """How a panel is drawn."""

    LINES = "lines"
    STACK = "stack"
    """Lines on top of each other, whose sum has a meaning."""
    FIGURE = "figure"
    """The latest value, large."""


@dataclass(frozen=True, slots=True)
class Line:
    """One query of a panel, with a name for each of its groups."""

    query: Query
    name: str = ""
    """Before the values of the query's labels."""


@dataclass(frozen=True, slots=True)
class Limits:
    """From which value on a figure is a warning, and from which on it is bad."""

    warning: float
    bad: float


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel of a view."""

    title: str
    description: str
    """What it shows, what is normal, and what the rest means."""
    unit: Unit
    lines: tuple[Line, ...]
    shape: Shape = Shape.LINES
    limits: Limits | None = None
    width: int = 8
    """Of 24."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side, under a title."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class View:
    """One dashboard."""

    name: str
    """The file's name, and the end of Grafana's uid."""
    title: str
    description: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]
