"""promtool and amtool on the files of deploy/monitoring: their own checks, and their unit tests."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.unit.deploy.monitoring.files import MONITORING, RULES, TESTS, alertmanager, alerts

PROMTOOL, AMTOOL = shutil.which("promtool"), shutil.which("amtool")
needs_promtool: Final = pytest.mark.skipif(
    PROMTOOL is None,
    reason="promtool is not installed: `apt-get install prometheus` on Debian or Ubuntu has it",
)
needs_amtool: Final = pytest.mark.skipif(
    AMTOOL is None,
    reason="amtool is not installed: `apt-get install prometheus-alertmanager` on Debian or Ubuntu"
    " has it",
)
ALERTMANAGER: Final = MONITORING / "alertmanager.yaml"
LIMIT_S: Final = 60.0
_RANK: Final = {"none": 0, "warning": 1, "critical": 2}


def run(program: str | None, *arguments: object) -> tuple[int, str]:
    """The exit code and the output."""
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    return done.returncode, done.stdout


@needs_promtool
def test_promtool_accepts_configuration_and_rules(tmp_path: Path) -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text(encoding="utf-8"))
    for job in config["scrape_configs"]:
        # Debian's build has no service discovery of Kubernetes.
        if job.pop("kubernetes_sd_configs", None):
            job["static_configs"] = [{"targets": ["any:1"]}]
    file = tmp_path / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    # Without --syntax-only it looks for the files of the service account.
    code, output = run(PROMTOOL, "check", "config", "--syntax-only", file)
    assert code == 0, output
    code, output = run(PROMTOOL, "check", "rules", *RULES)
    assert code == 0, output


@needs_promtool
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_unit_tests_of_the_rules_pass(file: Path) -> None:
    code, output = run(PROMTOOL, "test", "rules", file)
    assert code == 0, output


@needs_promtool
def test_control_a_changed_limit_fails_a_unit_test(tmp_path: Path) -> None:
    text = (MONITORING / "rules/money.yaml").read_text(encoding="utf-8")
    assert text.count("> 600") == 1
    shutil.copytree(MONITORING / "tests", tmp_path / "tests")
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/money.yaml").write_text(text.replace("> 600", "> 720"), encoding="utf-8")
    code, output = run(PROMTOOL, "test", "rules", tmp_path / "tests/money.yaml")
    assert code != 0
    assert "TallySagaNeedsAttention" in output


@needs_amtool
def test_amtool_accepts_the_configuration() -> None:
    code, output = run(AMTOOL, "check-config", ALERTMANAGER)
    assert code == 0, output


@needs_amtool
@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=TallyAuditBreach", "severity=critical"], "on-call"),
        (["alertname=TallyServiceDown", "severity=critical", "service=order"], "on-call"),
        (["alertname=TallyRedisAbsent", "severity=warning", "service=order"], "tickets"),
        (["alertname=TallyWatchdog", "severity=none"], "watchdog"),
        (["alertname=Unknown"], "tickets"),
    ],
)
def test_an_alert_goes_to_its_receiver(labels: list[str], receiver: str) -> None:
    code, output = run(AMTOOL, "config", "routes", "test", f"--config.file={ALERTMANAGER}", *labels)
    # A warning of amtool may come first.
    assert (code, output.splitlines()[-1]) == (0, receiver)


def matching(matchers: list[str]) -> set[str]:
    """The alerts that a rule's matchers name."""
    for text in matchers:
        if found := re.fullmatch(r'alertname (=~?) "?([^"]*)"?', text):
            pattern = re.escape(found[2]) if found[1] == "=" else found[2]
            names = {alert.name for alert in alerts() if re.fullmatch(pattern, alert.name)}
            alternatives = re.sub(r"\(.*?\)", "", pattern).split("|")
            assert len(names) >= len(alternatives), f"{pattern} names an alert that does not exist"
            return names
    pytest.fail(f"{matchers} name no alert")


@pytest.mark.parametrize("rule", alertmanager()["inhibit_rules"], ids=str)
def test_nothing_silences_what_is_more_severe(rule: dict[str, Any]) -> None:
    severity = {alert.name: _RANK[alert.severity] for alert in alerts()}
    sources, targets = matching(rule["source_matchers"]), matching(rule["target_matchers"])
    assert not sources & targets
    for source, target in product(sources, targets):
        assert severity[source] >= severity[target], (source, target)


def test_secrets_are_in_files() -> None:
    text = yaml.safe_dump(alertmanager())
    assert "slack_api_url_file" in text
    assert "credentials_file" in text
    assert not re.search(r"hooks\.slack\.com|api_url:|credentials:|password:", text)
