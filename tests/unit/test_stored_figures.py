"""Rules and panels never add up figures that every replica reads from the database.

All replicas export the same figures: ``max by`` has them, ``sum`` has them as often as there are
replicas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from deploy.local.plan import PROJECT
from tests.support.promql import aggregations_of

MONITORING: Final = PROJECT / "deploy/monitoring"
STORED: Final = re.findall(
    r"^\| `(tally_(?:active|open)_\w+)` ", (PROJECT / "docs/metrics.md").read_text(), re.MULTILINE
)
ADDING: Final = {"sum", "avg", "count", "count_values", "quantile", "stddev", "stdvar"}


def queries(content: Any) -> Iterator[str]:
    """Every ``expr`` in a file of rules or of a dashboard."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "expr" and isinstance(value, str):
                yield value
            else:
                yield from queries(value)
    elif isinstance(content, list):
        for each in content:
            yield from queries(each)


def wrong(content: Any) -> list[str]:
    """The queries that add a stored figure up over replicas."""
    return [
        query
        for query in queries(content)
        for metric in STORED
        if ADDING.intersection(aggregations_of(metric, query))
    ]


def files() -> list[Path]:
    return sorted(
        file for pattern in ("*.yaml", "*.yml", "*.json") for file in MONITORING.rglob(pattern)
    )


@pytest.mark.parametrize("metric", STORED)
def test_no_rule_or_panel_adds_up_a_stored_figure(metric: str) -> None:
    for file in files():
        text = file.read_text(encoding="utf-8")
        if metric in text:
            parse = json.loads if file.suffix == ".json" else lambda it: [*yaml.safe_load_all(it)]
            assert wrong(parse(text)) == [], file


def test_the_stored_figures_are_known() -> None:
    assert {"tally_active_sagas", "tally_active_failed_compensations", "tally_open_payments"} < {
        *STORED
    }
    assert len(STORED) % 2 == 0, "a count, and the age of the oldest"


@pytest.mark.parametrize(
    ("query", "adds"),
    [
        ("sum(tally_active_sagas)", True),
        ('sum by (kind) (tally_active_sagas{state="RUNNING"})', True),
        ("sum without (instance) (tally_active_sagas) > 1", True),
        ("sum(tally_active_sagas) by (kind)", True),
        ("sum(rate(x[5m])) / avg(clamp_min(tally_active_sagas, 1))", True),
        ("count by (kind) (tally_active_sagas > 0)", True),
        ("max by (kind, state) (tally_active_sagas)", False),
        ("sum by (kind) (max by (kind, state) (tally_active_sagas))", False),
        ("sum(max without (instance) (tally_active_sagas))", False),
        ("sum(rate(tally_active_sagas_seen[5m]))", False),
        ('sum(x{y="tally_active_sagas"})', False),
        ("(sum(x)) + max(tally_active_sagas)", False),
        ("absent(tally_active_sagas)", False),
    ],
)
def test_the_nearest_aggregation_of_a_figure_counts(query: str, adds: bool) -> None:
    assert bool(wrong({"panels": [{"targets": [{"expr": query}]}]})) is adds
