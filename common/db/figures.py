"""Gauges of rows in the database: how many there are of each kind, and how old the oldest is.

All replicas of a service read the same rows, so each exports the same figures: take ``max by`` of
them, never ``sum``. A replica whose read failed exports none, rather than old ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from prometheus_client import Gauge
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from common.db.database import Database
from common.db.repeat import read
from common.db.statements import Row
from common.metrics import REGISTRY
from common.tasks import PeriodicJob

INTERVAL_S: Final = 15.0
READ_S: Final = 1.0
"""Time limit of a read: figures must not hold a connection that calls need."""

_read_time = Gauge(
    "tally_stored_figures_read_timestamp_seconds",
    "Unix time of the last successful read of figures from the database, by their name.",
    ("figures",),
    registry=REGISTRY,
)


@dataclass(frozen=True, slots=True)
class StoredFigure:
    """``<name>`` and ``<name>_oldest_seconds``: how many rows there are, and the age of the oldest.

    Rows of a read that have the same labels count together.
    """

    name: str
    meaning: str
    labels: tuple[str, ...]
    known: Collection[tuple[str, ...]]
    """Labels that are exported as 0 while there are no such rows."""
    age: str = "the time since the oldest began"
    rows: str = "rows"
    """The column that counts them."""
    oldest_s: str = "oldest_s"
    """The column with the age of the oldest, in seconds; NULL if there are none."""

    def families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        """Both gauges, without samples."""
        return (
            GaugeMetricFamily(self.name, f"{self.meaning}.", labels=self.labels),
            GaugeMetricFamily(
                f"{self.name}_oldest_seconds",
                f"{self.meaning}: {self.age}, in seconds.",
                labels=self.labels,
            ),
        )

    def found_in(self, read: Sequence[Row]) -> Mapping[tuple[str, ...], tuple[int, float]]:
        """By labels, the number of rows and the age of the oldest."""
        found = dict.fromkeys(self.known, (0, 0.0))
        for row in read:
            labels = tuple(getattr(row, label) for label in self.labels)
            rows, oldest_s = found.get(labels, (0, 0.0))
            age_s = float(getattr(row, self.oldest_s) or 0.0)
            found[labels] = (rows + getattr(row, self.rows), max(oldest_s, age_s))
        return found


class StoredFigures(Collector):
    """Figures that one statement reads: one object for the process."""

    def __init__(self, statement: sa.Executable, *figures: StoredFigure) -> None:
        """``statement``: rows with the columns and labels of all figures."""
        self.name = figures[0].name
        """The name of the read: that of its first figure."""
        self.figures = figures
        self._statement = statement
        self._read: Sequence[Row] | None = None
        REGISTRY.register(self)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """What is exported; the registry compares the names with those of others."""
        for figure in self.figures:
            yield from figure.families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The figures of the last read; none if it failed. Called in another thread."""
        read = self._read
        if read is None:
            return
        for figure in self.figures:
            count, oldest = figure.families()
            for labels, (rows, oldest_s) in figure.found_in(read).items():
                count.add_metric(labels, rows)
                oldest.add_metric(labels, oldest_s)
            yield count
            yield oldest

    async def refresh(self, database: Database) -> None:
        """Read the figures. Raises DatabaseUnavailable, Overloaded or TimeoutError."""
        try:
            async with asyncio.timeout(READ_S):
                self._read = await read(database, lambda each: each.execute(self._statement))
        except BaseException:
            self._read = None
            raise
        _read_time.labels(self.name).set_to_current_time()

    def job(self, database: Database) -> PeriodicJob:
        """The job that reads them."""
        return PeriodicJob(self.name, INTERVAL_S, lambda _stopping: self.refresh(database))
