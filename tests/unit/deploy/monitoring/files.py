"""The files of deploy/monitoring as objects, and the metrics that they may name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import yaml

from deploy.local.plan import PROJECT

MONITORING: Final = PROJECT / "deploy/monitoring"
RULES: Final = sorted((MONITORING / "rules").glob("*.yaml"))
TESTS: Final = sorted((MONITORING / "tests").glob("*.yaml"))
RUNBOOKS: Final = PROJECT / "docs/runbooks"
GUIDE: Final = PROJECT / "docs/guides/alerts.md"

_SUFFIXES: Final = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}
_STRING: Final = re.compile(r'"[^"]*"')
_NOT_NAMES: Final = re.compile(
    r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)|\{[^}]*\}|\[[^]]*\]"
)
_NAME: Final = re.compile(r"[a-zA-Z_:][\w:]*(?!\w*\s*\()")
_OPERATORS: Final = frozenset({"and", "or", "unless", "bool", "offset"})
_SELECTOR: Final = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
_LABEL: Final = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


@dataclass(frozen=True, slots=True)
class Alert:
    """An alerting rule."""

    name: str
    expr: str
    for_: str
    severity: str
    annotations: dict[str, str]

    @property
    def page(self) -> str:
        """The file name of its runbook."""
        return re.sub(r"(?<!^)([A-Z])", r"-\1", self.name).lower() + ".md"


def _read(file: Any) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _rules() -> Iterator[dict[str, Any]]:
    for file in RULES:
        for group in _read(file)["groups"]:
            yield from group["rules"]


@cache
def alerts() -> list[Alert]:
    """Every alert, in the order of the files."""
    return [
        Alert(
            rule["alert"],
            rule["expr"],
            rule.get("for", ""),
            rule.get("labels", {}).get("severity", ""),
            rule.get("annotations", {}),
        )
        for rule in _rules()
        if "alert" in rule
    ]


@cache
def records() -> dict[str, str]:
    """The expression of every recording rule, by its name."""
    return {rule["record"]: rule["expr"] for rule in _rules() if "record" in rule}


@cache
def promtool_cases() -> list[tuple[str, bool]]:
    """Each case of promtool's unit tests: its alert, and whether it has to fire."""
    return [
        (case["alertname"], bool(case.get("exp_alerts")))
        for file in TESTS
        for group in _read(file)["tests"]
        for case in group.get("alert_rule_test", [])
    ]


@cache
def alertmanager() -> dict[str, Any]:
    """The configuration of Alertmanager."""
    found: dict[str, Any] = _read(MONITORING / "alertmanager.yaml")
    return found


def names_in(expression: str) -> set[str]:
    """The metrics that an expression names."""
    text = _NOT_NAMES.sub("", _STRING.sub('""', expression))
    return set(_NAME.findall(text)) - _OPERATORS


def labels_in(expression: str) -> Iterator[tuple[str, str]]:
    """Each metric with a label by which the expression selects its series."""
    for metric, matchers in _SELECTOR.findall(expression):
        for label in _LABEL.findall(_STRING.sub('""', matchers)):
            yield metric, label


@cache
def own_metrics() -> dict[str, set[str]]:
    """The labels of each series of docs/metrics.md, by the name under which it is scraped."""
    page = (PROJECT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", page, re.MULTILINE)
    return {
        name + suffix: set(re.findall(r"`(\w+)`", labels))
        for name, kind, labels in rows
        for suffix in _SUFFIXES.get(kind, ("",))
    }


@cache
def metrics_of_exporters() -> set[str]:
    """The metrics of others that the guide lists."""
    page = GUIDE.read_text(encoding="utf-8")
    table = page.partition("<!-- exporters -->")[2].partition("<!-- end -->")[0]
    return {
        name
        for row in table.splitlines()[3:]
        if row.startswith("| ")
        for name in re.findall(r"`(\w+)`", row.split("|")[2])
    }
