"""Gauges of rows in the database: how many there are of each kind, and how old the oldest is.

All replicas of a service read the same rows, so each exports the same figures: take ``max by`` of
them, never ``sum``. A replica whose read failed exports none, rather than old ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import sqlalchemy as sa
from prometheus_client import Gauge
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from common.db.database import Database
from common.db.repeat import read
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


class StoredFigures(Collector):
    """``<name>`` and ``<name>_oldest_seconds``, by labels: one object for the process."""

    def __init__(
        self,
        name: str,
        meaning: str,
        labels: Sequence[str],
        statement: sa.Select[tuple[object, ...]],
        *,
        known: Collection[tuple[str, ...]],
    ) -> None:
        """``statement``: a row of labels, ``rows`` and ``oldest_s`` for each kind that exists.

        ``known``: labels that are exported as 0 while there are no such rows.
        """
        self.name = name
        self._meaning = meaning
        self.labels = tuple(labels)
        self._statement = statement
        self._known = known
        self._found: Mapping[tuple[str, ...], tuple[int, float]] | None = None
        REGISTRY.register(self)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """What is exported; the registry compares the names with those of others."""
        yield GaugeMetricFamily(self.name, f"{self._meaning}.", labels=self.labels)
        yield GaugeMetricFamily(
            f"{self.name}_oldest_seconds",
            f"{self._meaning}: the time since the oldest began, in seconds.",
            labels=self.labels,
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The figures of the last read; none if it failed. Called in another thread."""
        found = self._found
        if found is None:
            return
        count, oldest = self.describe()
        for values, (rows, oldest_s) in found.items():
            count.add_metric(values, rows)
            oldest.add_metric(values, oldest_s)
        yield count
        yield oldest

    async def refresh(self, database: Database) -> None:
        """Read the figures. Raises DatabaseUnavailable, Overloaded or TimeoutError."""
        try:
            async with asyncio.timeout(READ_S):
                rows = await read(database, lambda each: each.execute(self._statement))
        except BaseException:
            self._found = None
            raise
        found = dict.fromkeys(self._known, (0, 0.0))
        for row in rows:
            labels = tuple(getattr(row, label) for label in self.labels)
            found[labels] = (row.rows, max(0.0, float(row.oldest_s)))
        self._found = found
        _read_time.labels(self.name).set_to_current_time()

    def job(self, database: Database) -> PeriodicJob:
        """The job that reads them."""
        return PeriodicJob(self.name, INTERVAL_S, lambda _stopping: self.refresh(database))
