"""The rules of deploy/monitoring with seconds for minutes: real faults fire them in a test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.local.monitors import RULES

FACTOR: Final = 60
SHORTEST_S: Final = 2
"""A rate needs two scrapes in its window."""
PERIODIC_FACTOR: Final = 4
"""For limits of the time since a periodic run: the longest of those has to fit 15 s."""
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION: Final = re.compile(r"(\d+)([smhd])")
_WINDOW: Final = re.compile(r"\[\d+[smhd](:\d+[smhd])?\]")
_COUNT: Final = re.compile(r"(:1m\]\) \*) 60\b")
_AGE: Final = re.compile(r"((?:_oldest_seconds|_age_seconds|_tx_duration)[^>]*> )(\d+)")
_SINCE: Final = re.compile(r"(timestamp_seconds(?: > 0)?[^>]*> )(\d+)\b(?! \*)")
_HOURS: Final = re.compile(r"(\d+) \* 3600")
_AHEAD: Final = re.compile(r"(\], )86400\)")


class Scale:
    """How much shorter the times of rules are."""

    def __init__(self, factor: int = FACTOR, shortest_s: int = SHORTEST_S) -> None:
        self._factor = factor
        self._shortest_s = shortest_s

    def expression(self, text: str) -> str:
        """The expression with shorter windows and limits of ages."""
        # A sum of rates over the steps of a window is a count after multiplication by the step.
        text = _COUNT.sub(lambda m: f"{m[1]} {self._seconds(60)}", text)
        text = _WINDOW.sub(lambda m: self.durations(m[0]), text)
        text = _AGE.sub(lambda m: f"{m[1]}{int(m[2]) / self._factor:g}", text)
        text = _SINCE.sub(lambda m: f"{m[1]}{int(m[2]) / PERIODIC_FACTOR:g}", text)
        text = _HOURS.sub(lambda m: f"{m[1]} * {3600 / self._factor:g}", text)
        return _AHEAD.sub(lambda m: f"{m[1]}{86_400 / self._factor:g})", text)

    def durations(self, text: str) -> str:
        """The text with shorter durations."""
        return _DURATION.sub(lambda m: f"{self._seconds(int(m[1]) * _SECONDS[m[2]])}s", text)

    def _seconds(self, seconds: int) -> int:
        return max(self._shortest_s, seconds // self._factor)


def shortened(directory: Path, scale: Scale | None = None, *, files: str = "*.yaml") -> Path:
    """Write all rules into the directory, or those of some files, with shorter times."""
    scale = scale or Scale()
    directory.mkdir(exist_ok=True)
    for file in RULES.glob(files):
        content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        for group in content["groups"]:
            group.pop("interval", None)
            for rule in group["rules"]:
                rule["expr"] = scale.expression(rule["expr"])
                if "for" in rule:
                    rule["for"] = scale.durations(rule["for"])
        (directory / file.name).write_text(yaml.safe_dump(content), encoding="utf-8")
    return directory


def alternatives(directory: Path, alert: str) -> list[str]:
    """The expressions any of which fires an alert of the rules in the directory."""
    for file in directory.glob("*.yaml"):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                if rule.get("alert") == alert:
                    return re.split(r"\n *or\n(?=\()", rule["expr"].strip())
    raise AssertionError(f"no rule of {directory} has the alert {alert}")
