"""The last minute of readings, and the values of panels in it."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Final

from deploy.monitoring.panels import Panel
from deploy.monitoring.queries import Found
from deploy.monitoring.readings import Reading
from deploy.monitoring.views.services import CALLS_BY_SERVICE

WINDOW_S: Final = 10.0
"""Rates are those of the last ten seconds."""
SPARKS: Final = 12
"""How many readings a sparkline shows."""


class History:
    """Readings, the latest last. Rates need two."""

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque()
        self.calls: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=SPARKS))
        """Calls per second between two readings each, by service."""

    def add(self, reading: Reading) -> None:
        """Add the latest reading, and forget those that no rate needs any more."""
        if self._readings:
            rates = CALLS_BY_SERVICE.lines[0].query.values(self._readings[-1], reading)
            for (service,), rate in rates.items():
                self.calls[service].append(rate)
        self._readings.append(reading)
        while len(self._readings) > 2 and reading.taken_s - self._readings[1].taken_s >= WINDOW_S:
            self._readings.popleft()

    @property
    def now(self) -> Reading:
        """The latest reading."""
        return self._readings[-1]

    @property
    def window_s(self) -> float:
        """The time over which rates are taken."""
        return self.now.taken_s - self._readings[0].taken_s

    def values(self, panel: Panel, line: int = 0) -> Found:
        """The values of one line of a panel."""
        return panel.lines[line].query.values(self._readings[0], self.now)

    def value(self, panel: Panel, line: int = 0) -> float:
        """The value of a line that has one group; NaN if it has none."""
        return next(iter(self.values(panel, line).values()), float("nan"))
