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
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION: Final = r"(\d+)([smhd])"
_WINDOW: Final = re.compile(rf"\[{_DURATION}(:{_DURATION})?\]")
_OLDEST: Final = re.compile(r"((?:_oldest|_age)_seconds[^>]*> )(\d+)")


def shortened(directory: Path) -> Path:
    """Write all rules into the directory; windows, waits and limits of ages are a 60th."""
    directory.mkdir(exist_ok=True)
    for file in RULES.glob("*.yaml"):
        content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        for group in content["groups"]:
            group.pop("interval", None)
            for rule in group["rules"]:
                windows = _WINDOW.sub(lambda m: re.sub(_DURATION, _short, m[0]), rule["expr"])
                rule["expr"] = _OLDEST.sub(lambda m: f"{m[1]}{int(m[2]) / FACTOR:g}", windows)
                if "for" in rule:
                    rule["for"] = re.sub(_DURATION, _short, rule["for"])
        (directory / file.name).write_text(yaml.safe_dump(content), encoding="utf-8")
    return directory


def _short(match: re.Match[str]) -> str:
    seconds = int(match[1]) * _SECONDS[match[2]] // FACTOR
    return f"{max(SHORTEST_S, seconds)}s"
