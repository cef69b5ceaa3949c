"""Each kind of load in turn, for minutes: the memory of each replica, which must not grow."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.figures import Period
from benchmarks.measure import Place, period
from benchmarks.processes import usage
from benchmarks.rows import RSS_MAX_MB, TOP_CALLERS
from benchmarks.subjects import Load

SUBJECTS: Final = (
    "deduct",
    "charge",
    "get-balance",
    "get-order",
    "issue",
    "order",
    "pay",
    "pay-all",
)
"""In turn, each for one period."""
SERVICES: Final = ("balance", "coupon", "order", "payment")
GROWTH_MAX: Final = 0.03
"""Of the memory's median in the second third of the time, in the last third."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A service's resident memory over the soak."""

    service: str
    mb: Sequence[float]
    """One reading per period."""

    @property
    def highest_mb(self) -> float:
        return max(self.mb)

    @property
    def growth(self) -> float:
        """From the second third to the last; the first is still warming up."""
        third = max(1, len(self.mb) // 3)
        middle = statistics.median(self.mb[third : 2 * third] or self.mb)
        return statistics.median(self.mb[-third:]) / middle - 1

    @property
    def holds(self) -> bool:
        return self.highest_mb <= RSS_MAX_MB and self.growth <= GROWTH_MAX


async def soak(place: Place, *, minutes: float, period_s: float) -> list[Memory]:
    """Load until the time is over; the memory of each service after every period."""
    readings: list[dict[str, int]] = []
    passed_s = 0.0
    while passed_s < minutes * 60:
        subject = place.subjects[SUBJECTS[len(readings) % len(SUBJECTS)]]
        done: Period = await period(subject, Load(TOP_CALLERS, period_s))
        passed_s += done.seconds
        readings.append(usage().rss_bytes)
    return [
        Memory(service, [reading[service] / 1e6 for reading in readings]) for service in SERVICES
    ]
