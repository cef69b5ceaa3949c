"""The arithmetic of the report: ratios of neighbouring periods, their spread, and the verdict."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.postgres import PostgresUse
from benchmarks.processes import SERVERS
from benchmarks.rows import FAILED_MAX, SPREAD_MAX, Figure, Row

REACHED: Final = "reached"
MISSED: Final = "missed"
BUSY_PART: Final = 0.5
"""Of a core. A server that uses less does not limit the rate."""


@dataclass(frozen=True, slots=True)
class Period:
    """What one period of load did and used."""

    subject: str
    callers: int
    units: int
    """Units of work that succeeded."""
    seconds: float
    p50_ms: float
    """Of a step, which may be many units."""
    p99_ms: float
    steps: int
    failed: Counter[str]
    cpu_s: dict[str, float]
    """By process."""
    rss_bytes: dict[str, int]

    @property
    def per_second(self) -> float:
        return self.units / self.seconds if self.seconds else 0.0

    @property
    def busiest_server_s(self) -> float:
        """Processor seconds per unit of the server that used most; 0 if none was busy."""
        used = max(self.cpu_s.get(name, 0.0) for name in SERVERS.values())
        return used / self.units if used >= BUSY_PART * self.seconds and self.units else 0.0

    @property
    def failed_part(self) -> float:
        failed = self.failed.total()
        return failed / (failed + self.steps) if failed else 0.0


def spread(values: Sequence[float]) -> float:
    """(highest - lowest) / median."""
    return _quotient(max(values) - min(values), statistics.median(values))


def _quotient(value: float, by: float) -> float:
    """NaN if nothing succeeded of what is divided by."""
    return value / by if by else math.nan


@dataclass(frozen=True, slots=True)
class Measurement:
    """A row at one number of callers: its rounds, in each of which both sides ran one period."""

    row: Row
    callers: int
    subjects: Sequence[Period]
    yardsticks: Sequence[Period]
    postgres: PostgresUse
    """Of all rounds. Yardsticks that use PostgreSQL count too."""
    postgres_steps: int
    """The subject's steps in that time."""
    sync_ms: float
    """Time of one sync of the disk."""

    @property
    def is_for_target(self) -> bool:
        return self.callers == self.row.at

    @property
    def ratios(self) -> list[float]:
        """One per round."""
        return [
            _quotient(self._of_subject(subject), self._of_yardstick(yardstick))
            for subject, yardstick in zip(self.subjects, self.yardsticks, strict=True)
        ]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def processor_ratios(self) -> list[float]:
        """The ratio of each round if the busiest server's processor time alone limited rates.

        Empty where a row is not on rates, or where a side has no busy server.
        """
        rounds = [
            (subject.busiest_server_s, yardstick.busiest_server_s)
            for subject, yardstick in zip(self.subjects, self.yardsticks, strict=True)
        ]
        if self.row.figure is not Figure.RATE or not all(all(both) for both in rounds):
            return []
        return [yardstick / subject for subject, yardstick in rounds]

    @property
    def yardstick_spread(self) -> float:
        return spread([self._of_yardstick(period) for period in self.yardsticks])

    @property
    def syncs_per_step(self) -> float:
        return self.postgres.syncs / self.postgres_steps if self.postgres_steps else 0.0

    @property
    def statements_us_per_step(self) -> float:
        steps = self.postgres_steps
        return self.postgres.statements_ms * 1000 / steps if steps else 0.0

    @property
    def uncounted(self) -> str:
        """Why the ratio does not count; empty if it does."""
        if any(period.failed_part > FAILED_MAX for period in (*self.subjects, *self.yardsticks)):
            return "calls failed"
        if math.isnan(self.ratio) or math.isnan(self.yardstick_spread):
            return "nothing succeeded"
        if self.yardstick_spread >= SPREAD_MAX:
            return f"the yardstick varies by {self.yardstick_spread:.0%}"
        return ""

    @property
    def verdict(self) -> str:
        """Whether the target is reached; empty if there is none for this number of callers."""
        if self.row.target is None or not self.is_for_target:
            return ""
        outcome = REACHED if self.row.target.reached(self.ratio) else MISSED
        return f"does not count: {self.uncounted}" if self.uncounted else outcome

    @property
    def cpu_us(self) -> dict[str, float]:
        """Processor time per unit of the subject, by process, in microseconds."""
        return _per_unit_us(self.subjects)

    @property
    def yardstick_cpu_us(self) -> dict[str, float]:
        return _per_unit_us(self.yardsticks)

    @property
    def cores(self) -> dict[str, float]:
        """The part of one core that each process used while the subject ran."""
        seconds = sum(period.seconds for period in self.subjects)
        return {name: used / seconds for name, used in _cpu_s(self.subjects).items() if seconds}

    def _of_subject(self, period: Period) -> float:
        match self.row.figure:
            case Figure.RATE:
                return period.per_second
            case Figure.LATENCY:
                return period.p50_ms
            case Figure.LATENCY_LESS_SYNCS:
                return period.p50_ms - self.syncs_per_step * self.sync_ms
            case Figure.TAIL | Figure.TAILS:
                return period.p99_ms

    def _of_yardstick(self, period: Period) -> float:
        if self.row.figure is Figure.TAILS:
            return period.p99_ms
        return period.per_second if self.row.figure is Figure.RATE else period.p50_ms


def _cpu_s(periods: Sequence[Period]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for period in periods:
        total.update(period.cpu_s)
    return dict(total)


def _per_unit_us(periods: Sequence[Period]) -> dict[str, float]:
    units = sum(period.units for period in periods) or 1
    return {name: used * 1e6 / units for name, used in _cpu_s(periods).items()}
