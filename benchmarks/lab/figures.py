"""The figures of the lab: those of one run of a cell, and the medians of its repetitions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Final

NONE: Final = math.nan
"""A figure that a strategy does not have, such as the wait of one without locks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one run of a cell, or of several: each figure is a median then."""

    asked: float
    succeeded: float
    refused: float
    errored: float
    unfinished: float
    """Requests without an outcome when the time limit passed."""
    lost: float
    doubled: float
    oversold: float
    wall_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    refused_p99_ms: float
    """Of the requests that were refused."""
    succeeded_p95_ms: float
    database_ms: float
    """Time that sessions spent in statements, waiting included, by PostgreSQL's own count."""
    connection_ms: float
    """Time that sessions spent in transactions or statements: nobody else could use them."""
    lock_wait_ms: float
    """The mean for a request that locks."""
    lock_hold_ms: float
    queue_length: float
    """The most requests that waited at once, the processes' maxima added up."""
    conflicts: float
    deadlocks: float
    first_check: float
    gateway_calls: float
    redis_calls: float
    redis_messages: float

    @property
    def wrong(self) -> float:
        """Lost, doubled and oversold together."""
        return self.lost + self.doubled + self.oversold


NAMES: Final = tuple(field.name for field in fields(Figures))


@dataclass(frozen=True, slots=True)
class Cell:
    """One strategy in one experiment: each of its runs."""

    experiment: str
    strategy: str
    runs: Sequence[Figures]

    @property
    def median(self) -> Figures:
        return Figures(**{name: _median(getattr(run, name) for run in self.runs) for name in NAMES})

    @property
    def worst(self) -> float:
        """The most wrong updates in a run."""
        return max(run.wrong for run in self.runs)

    @property
    def spread(self) -> float:
        """(highest - lowest) / median of the wall time."""
        times = [run.wall_ms for run in self.runs]
        return (max(times) - min(times)) / (statistics.median(times) or 1.0)


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else NONE


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of the values do not exceed; NONE without values."""
    if not values:
        return NONE
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else NONE
