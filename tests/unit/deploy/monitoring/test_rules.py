"""Every rule is complete: a severity, texts, a runbook, a unit test, and metrics that exist."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.monitoring import test_alerts, test_postgres_alerts, test_replica_alerts
from tests.unit.deploy.monitoring.files import (
    RUNBOOKS,
    Alert,
    alerts,
    labels_in,
    metrics_of_exporters,
    names_in,
    own_metrics,
    promtool_cases,
    records,
)

SEVERITIES: Final = ("critical", "warning", "none")
ANNOTATIONS: Final = {"summary", "description", "runbook_url"}
SCRAPED: Final = {"job", "service", "instance", "le"}
"""Labels that Prometheus adds to every series of Tally, and that of a histogram's buckets."""
SECTIONS: Final = [
    "What it means",
    "What the customer sees",
    "How to look",
    "What to do",
    "When to stop",
    "It is over when",
]

each_alert: Final = pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)


@each_alert
def test_an_alert_has_a_severity_and_texts(alert: Alert) -> None:
    assert alert.name.startswith("Tally")
    assert alert.severity in SEVERITIES
    assert alert.annotations.keys() == ANNOTATIONS
    assert all(alert.annotations.values())


@each_alert
def test_an_alert_links_its_runbook(alert: Alert) -> None:
    assert alert.annotations["runbook_url"].endswith(f"/docs/runbooks/{alert.page}")
    page = (RUNBOOKS / alert.page).read_text(encoding="utf-8")
    assert page.startswith(f"# {alert.name}\n")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == SECTIONS


@each_alert
def test_an_alert_has_a_case_that_fires_and_one_that_does_not(alert: Alert) -> None:
    found = {fires for name, fires in promtool_cases() if name == alert.name}
    # The watchdog has no case in which it does not.
    assert found == ({True} if alert.severity == "none" else {True, False})


def test_every_alert_has_a_drill() -> None:
    drilled = {name for name, _, _ in test_alerts.BURN_RATES}
    for module in (test_alerts, test_postgres_alerts, test_replica_alerts):
        drilled |= {name for drill in module.DRILLS for name in drill.values[1]}
    # It fires without a fault.
    assert drilled | {"TallyWatchdog"} == {alert.name for alert in alerts()}


def test_every_case_names_an_alert() -> None:
    assert {name for name, _ in promtool_cases()} <= {alert.name for alert in alerts()}


def test_the_index_and_the_pages_are_those_of_the_alerts() -> None:
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\(([\w-]+\.md)\) \| (\w+) \|", index, re.MULTILINE)
    assert sorted(rows) == sorted((each.name, each.page, each.severity) for each in alerts())
    pages = {page.name for page in RUNBOOKS.glob("tally-*.md")}
    assert pages == {alert.page for alert in alerts()}


def test_every_name_is_that_of_one_alert() -> None:
    names = [alert.name for alert in alerts()]
    assert sorted(names) == sorted(set(names))


EXPRESSIONS: Final = {alert.name: alert.expr for alert in alerts()} | records()


@pytest.mark.parametrize("rule", EXPRESSIONS)
def test_every_metric_and_label_of_a_rule_exists(rule: str) -> None:
    own = own_metrics()
    known = own.keys() | records().keys() | metrics_of_exporters() | {"up"}
    assert names_in(EXPRESSIONS[rule]) - known == set()
    for metric, label in labels_in(EXPRESSIONS[rule]):
        assert metric not in own or label in own[metric] | SCRAPED, (metric, label)


def test_every_record_is_used_by_an_alert() -> None:
    used, found = set[str](), {name for alert in alerts() for name in names_in(alert.expr)}
    while found:
        used |= found
        found = {name for one in found & records().keys() for name in names_in(records()[one])}
    assert records().keys() - used == set()


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('max by (kind) (tally_a{state="x_y"}) > 0', {"tally_a"}),
        (
            "time() - tally_b[5m] or absent(tally_c) and on (a) d:e:f",
            {"tally_b", "tally_c", "d:e:f"},
        ),
        ('label_replace(up{job=~"tally|postgres"} == 0, "pool", "$1", "b", "(.*)")', {"up"}),
        (
            "sum by (le) (rate(tally_h_bucket[5m])) unless on (service, work) g",
            {"tally_h_bucket", "g"},
        ),
    ],
)
def test_metrics_are_found_in_expressions(expression: str, names: set[str]) -> None:
    assert names_in(expression) == names


def test_an_unknown_metric_is_found() -> None:
    assert names_in("rate(tally_grpc_callz_total[5m])") - own_metrics().keys()
