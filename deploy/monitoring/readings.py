"""What the metrics pages of a stack show at one time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

JOB: Final = {"job": "tally"}
SERVICE: Final = "service"
INSTANCE: Final = "instance"
"""Labels that whoever reads the pages adds, Prometheus or `make watch`: the service and the name of
the replica."""

Labels = frozenset[tuple[str, str]]
"""All labels of a series with their values."""


@dataclass(frozen=True, slots=True)
class Page:
    """The text of one replica's page."""

    service: str
    replica: str
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """The samples of all pages that answered."""

    taken_s: float
    """By the monotonic clock."""
    unix_s: float
    samples: Mapping[str, Mapping[Labels, float]]
    """By name of the metric, then by labels."""
    replicas: frozenset[str]
    """Those that answered."""

    def has_page_of(self, labels: Mapping[str, str]) -> bool:
        """Whether the replica that has this series answered."""
        return labels[INSTANCE] in self.replicas


def read_pages(
    pages: Iterable[Page], names: Iterable[str], *, taken_s: float, unix_s: float
) -> Reading:
    """The series with these names. Other lines are not parsed: they are most of a page."""
    wanted = tuple(name + end for name in names for end in ("{", " "))
    samples: dict[str, dict[Labels, float]] = {}
    replicas = set()
    for page in pages:
        replicas.add(page.replica)
        of_page = (*JOB.items(), (SERVICE, page.service), (INSTANCE, page.replica))
        lines = [line for line in page.text.splitlines() if line.startswith(wanted)]
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                labels = frozenset((*sample.labels.items(), *of_page))
                samples.setdefault(sample.name, {})[labels] = sample.value
    return Reading(taken_s, unix_s, samples, frozenset(replicas))
