"""The declared panels: readable, and of metrics and labels that exist."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

import pytest

from deploy import metrics_reference
from deploy.monitoring import grafana
from deploy.monitoring.panels import Panel, View
from deploy.monitoring.queries import Now
from deploy.monitoring.readings import INSTANCE, JOB, SERVICE
from deploy.monitoring.views import VIEWS

WIDTH: Final = 24
CONFIG_MAP_BYTES_MAX: Final = 250_000
"""`kubectl apply` keeps a copy in an annotation, of which all have 256 KiB."""
OF_THE_PROCESS: Final = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
OF_THE_SCRAPE: Final = {SERVICE, INSTANCE, "le", *JOB}
STORED: Final = ("tally_active_", "tally_open_")

PANELS: Final = [
    pytest.param(panel, id=f"{view.name}: {panel.title}") for view in VIEWS for panel in view.panels
]


@pytest.fixture(scope="module")
def labels_of() -> dict[str, set[str]]:
    """The labels of every name on a page."""
    found = {name: set[str]() for name in OF_THE_PROCESS}
    for metric in metrics_reference.metrics():
        ends = {
            "counter": ["_total"],
            "histogram": ["_bucket", "_sum", "_count"],
            "info": ["_info"],
        }.get(metric.type, [""])
        found |= {metric.name + end: {*metric.labels} for end in ends}
    found["tally_build_info"] |= {"version"}
    return found


@pytest.mark.parametrize("panel", PANELS)
def test_metrics_and_labels_exist(panel: Panel, labels_of: dict[str, set[str]]) -> None:
    for line in panel.lines:
        for series in line.query.series():
            used = {*line.query.by, *series.where, *series.unless}
            assert used <= labels_of[series.name] | OF_THE_SCRAPE, series.name


@pytest.mark.parametrize("panel", PANELS)
def test_stored_gauges_are_not_added_up(panel: Panel) -> None:
    for line in panel.lines:
        if any(series.name.startswith(STORED) for series in line.query.series()):
            assert isinstance(line.query, Now)
            assert line.query.fold == "max"


@pytest.mark.parametrize("panel", PANELS)
def test_description_is_a_text_of_sentences(panel: Panel) -> None:
    assert panel.title[0] == panel.title[0].upper()
    assert panel.description.endswith(".")
    assert len(panel.description) > len(panel.title) + 10


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_dashboard_has_every_panel_with_source_unit_and_text(view: View) -> None:
    text = grafana.content(view)
    assert len(text.encode()) < CONFIG_MAP_BYTES_MAX
    dashboard: dict[str, Any] = json.loads(text)
    assert dashboard["uid"] == f"tally-{view.name}"
    drawn = [each for each in dashboard["panels"] if each["type"] != "row"]
    assert [each["title"] for each in drawn] == [panel.title for panel in view.panels]
    assert len({each["id"] for each in dashboard["panels"]}) == len(dashboard["panels"])
    for each, panel in zip(drawn, view.panels, strict=True):
        assert each["description"] == panel.description
        assert each["fieldConfig"]["defaults"]["unit"] == panel.unit
        assert {target["datasource"]["uid"] for target in each["targets"]} == {"${datasource}"}
        expressions = [line.query.promql() for line in panel.lines]
        assert [target["expr"] for target in each["targets"]] == expressions


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_panels_fill_their_lines(view: View) -> None:
    for row in view.rows:
        width = 0
        for panel in row.panels:
            width = panel.width if width + panel.width > WIDTH else width + panel.width
        assert width == WIDTH, row.title


def test_titles_are_unique() -> None:
    titles = Counter(panel.title for view in VIEWS for panel in view.panels)
    assert [title for title, count in titles.items() if count > 1] == []
