"""Queries of metrics. Each is PromQL for Prometheus, and a function of two readings of the pages.

Grafana's dashboards are made of the first, `make watch` of the second: a panel is declared once.
"""

from __future__ import annotations

import abc
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from deploy.monitoring.readings import Labels, Reading

Group = tuple[str, ...]
"""The values of the labels that a query groups by, in their order."""
Found = dict[Group, float]

WINDOW: Final = "$__rate_interval"
"""What Grafana replaces by a window of several scrapes."""
_INFINITE: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Series:
    """Those series of a metric whose labels match."""

    name: str
    """As it is on the page: a counter's name ends in ``_total``."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Labels, and a regular expression that the whole value matches."""
    unless: Mapping[str, str] = field(default_factory=dict)
    """Labels, and an expression that the value does not match."""

    def promql(self) -> str:
        matchers = [f'{label}=~"{pattern}"' for label, pattern in self.where.items()]
        matchers += [f'{label}!~"{pattern}"' for label, pattern in self.unless.items()]
        return self.name + (f"{{{','.join(matchers)}}}" if matchers else "")

    def suffixed(self, suffix: str) -> Series:
        """The same series of a part of a histogram: ``_bucket``, ``_sum`` or ``_count``."""
        return Series(self.name + suffix, self.where, self.unless)

    def of(self, reading: Reading) -> Iterator[tuple[Labels, dict[str, str], float]]:
        """The series in a reading: all labels as a key and as a dictionary, and the value."""
        for key, value in reading.samples.get(self.name, {}).items():
            labels = dict(key)
            if self._matches(labels):
                yield key, labels, value

    def increases(self, then: Reading, now: Reading) -> Iterator[tuple[dict[str, str], float]]:
        """How much each counter rose. A counter that is lower than before began again at 0."""
        before = then.samples.get(self.name, {})
        for key, labels, value in self.of(now):
            if key in before:
                yield labels, value - before[key] if value >= before[key] else value
            elif then.has_page_of(labels):
                yield labels, value

    def _matches(self, labels: Mapping[str, str]) -> bool:
        return all(
            re.fullmatch(pattern, labels.get(label, "")) for label, pattern in self.where.items()
        ) and not any(
            re.fullmatch(pattern, labels.get(label, "")) for label, pattern in self.unless.items()
        )


class Query(abc.ABC):
    """What a panel shows: a value for each group of labels."""

    @property
    @abc.abstractmethod
    def by(self) -> tuple[str, ...]:
        """The labels of its groups."""

    @abc.abstractmethod
    def promql(self, window: str = WINDOW) -> str:
        """The query as PromQL; ``window`` is the range of its rates."""

    @abc.abstractmethod
    def values(self, then: Reading, now: Reading) -> Found:
        """The query over two readings of the pages; rates are those between them."""

    @abc.abstractmethod
    def series(self) -> tuple[Series, ...]:
        """What it reads."""


@dataclass(frozen=True, slots=True)
class Rate(Query):
    """How often a counter rises, all replicas together."""

    counter: Series
    by: tuple[str, ...] = ()
    period_s: int = 1
    """1: per second, 60: per minute."""
    top: int | None = None
    """Only so many groups, those with the highest rates."""

    def promql(self, window: str = WINDOW) -> str:
        text = f"{_folded('sum', self.by)} (rate({self.counter.promql()}[{window}]))"
        if self.period_s != 1:
            text = f"{self.period_s} * {text}"
        return text if self.top is None else f"topk({self.top}, {text})"

    def values(self, then: Reading, now: Reading) -> Found:
        elapsed_s = now.taken_s - then.taken_s
        found: Found = defaultdict(float)
        for labels, increase in self.counter.increases(then, now):
            found[_group(labels, self.by)] += self.period_s * increase / elapsed_s
        highest = sorted(found.items(), key=lambda item: -item[1])
        return dict(highest[: self.top])

    def series(self) -> tuple[Series, ...]:
        return (self.counter,)


@dataclass(frozen=True, slots=True)
class Quantile(Query):
    """A quantile of a histogram, all replicas together; NaN where nothing was observed."""

    quantile: float
    histogram: Series
    by: tuple[str, ...] = ()

    def promql(self, window: str = WINDOW) -> str:
        rates = f"{_folded('sum', ('le', *self.by))} (rate({self._buckets.promql()}[{window}]))"
        return f"histogram_quantile({self.quantile:g}, {rates})"

    def values(self, then: Reading, now: Reading) -> Found:
        groups: dict[Group, dict[float, float]] = defaultdict(lambda: defaultdict(float))
        for labels, increase in self._buckets.increases(then, now):
            groups[_group(labels, self.by)][float(labels["le"])] += increase
        return {group: _quantile(self.quantile, buckets) for group, buckets in groups.items()}

    def series(self) -> tuple[Series, ...]:
        return (self._buckets,)

    @property
    def _buckets(self) -> Series:
        return self.histogram.suffixed("_bucket")


@dataclass(frozen=True, slots=True)
class Mean(Query):
    """The mean of what a histogram observed; NaN where nothing was."""

    histogram: Series
    by: tuple[str, ...] = ()

    def promql(self, window: str = WINDOW) -> str:
        return " / ".join(part.promql(window) for part in self._parts)

    def values(self, then: Reading, now: Reading) -> Found:
        total, count = (part.values(then, now) for part in self._parts)
        return {group: total[group] / n if n else float("nan") for group, n in count.items()}

    def series(self) -> tuple[Series, ...]:
        return tuple(part.counter for part in self._parts)

    @property
    def _parts(self) -> tuple[Rate, Rate]:
        total, count = (self.histogram.suffixed(suffix) for suffix in ("_sum", "_count"))
        return Rate(total, self.by), Rate(count, self.by)


@dataclass(frozen=True, slots=True)
class Share(Query):
    """One rate as a share of another, from 0 to 1; NaN where there is nothing to share."""

    part: Rate
    whole: Rate
    """Grouped by the same labels."""

    @property
    def by(self) -> tuple[str, ...]:
        return self.whole.by

    def promql(self, window: str = WINDOW) -> str:
        part, whole = self.part.promql(window), self.whole.promql(window)
        # A part without series is 0.
        return f"({part} or 0 * {whole}) / {whole}"

    def values(self, then: Reading, now: Reading) -> Found:
        part = self.part.values(then, now)
        return {
            group: part.get(group, 0.0) / whole if whole else float("nan")
            for group, whole in self.whole.values(then, now).items()
        }

    def series(self) -> tuple[Series, ...]:
        return (self.part.counter, self.whole.counter)


@dataclass(frozen=True, slots=True)
class Now(Query):
    """A gauge, added up over the replicas or the highest of them.

    Gauges that are read from the database (``tally_active_…``, ``tally_open_…``) are the same in
    every replica: ``max`` only.
    """

    fold: Literal["sum", "max"]
    gauge: Series
    by: tuple[str, ...] = ()

    def promql(self, window: str = WINDOW) -> str:
        del window
        return f"{_folded(self.fold, self.by)} ({self.gauge.promql()})"

    def values(self, then: Reading, now: Reading) -> Found:
        del then
        groups: dict[Group, list[float]] = defaultdict(list)
        for _, labels, value in self.gauge.of(now):
            groups[_group(labels, self.by)].append(value)
        fold = sum if self.fold == "sum" else max
        return {group: fold(values) for group, values in groups.items()}

    def series(self) -> tuple[Series, ...]:
        return (self.gauge,)


@dataclass(frozen=True, slots=True)
class Since(Query):
    """The seconds since the latest of the times that a gauge holds, which are Unix times."""

    gauge: Series
    by: tuple[str, ...] = ()

    def promql(self, window: str = WINDOW) -> str:
        return f"time() - {self._latest.promql(window)}"

    def values(self, then: Reading, now: Reading) -> Found:
        latest = self._latest.values(then, now)
        return {group: now.unix_s - value for group, value in latest.items()}

    def series(self) -> tuple[Series, ...]:
        return (self.gauge,)

    @property
    def _latest(self) -> Now:
        return Now("max", self.gauge, self.by)


def _folded(fold: str, by: tuple[str, ...]) -> str:
    return f"{fold} by ({', '.join(by)})" if by else fold


def _group(labels: Mapping[str, str], by: tuple[str, ...]) -> Group:
    return tuple(labels.get(label, "") for label in by)


def _quantile(quantile: float, buckets: Mapping[float, float]) -> float:
    """As Prometheus' ``histogram_quantile``: linear within a bucket, the counts cumulative."""
    total = buckets.get(_INFINITE, 0.0)
    if not total:
        return float("nan")
    rank = quantile * total
    lower, below = 0.0, 0.0
    for upper, count in sorted(buckets.items()):
        if count >= rank and upper != _INFINITE:
            share = (rank - below) / (count - below) if count > below else 1.0
            return lower + (upper - lower) * share
        if upper != _INFINITE:
            lower, below = upper, count
    return lower
