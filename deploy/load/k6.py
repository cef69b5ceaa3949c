"""Runs one k6 script as a child process and reads what it measured."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.local.command_line import report
from deploy.local.errors import RunnerError
from deploy.local.processes import Child

SCRIPTS: Final = Path(__file__).parent
THRESHOLDS_CROSSED: Final = 99
STOP_LIMIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a script ended, and its metrics by name, as k6 exports them."""

    exit_code: int
    metrics: Mapping[str, Mapping[str, Any]]

    @property
    def ending(self) -> str:
        """How it ended, in a few words."""
        if self.exit_code == THRESHOLDS_CROSSED:
            # k6 writes for each threshold of a metric whether it was crossed.
            crossed = [
                name
                for name, values in self.metrics.items()
                if any(values.get("thresholds", {}).values())
            ]
            return f"crossed: {', '.join(sorted(crossed))}"
        return "all thresholds hold" if self.exit_code == 0 else f"k6 exited {self.exit_code}"

    def count(self, metric: str) -> int:
        """A counter's value; 0 if nothing was counted."""
        return int(self.metrics.get(metric, {}).get("count", 0))

    def share(self, metric: str) -> float:
        """A rate's value; 0 if nothing was counted."""
        return float(self.metrics.get(metric, {}).get("value", 0.0))

    def times(self, metric: str) -> str:
        """A trend's median and 95th percentile."""
        values = self.metrics.get(metric, {})
        if "med" not in values:
            return "no times"
        return f"median {values['med']:.0f} ms, p95 {values['p(95)']:.0f} ms"


def find() -> Path:
    """k6's program, which is one of the development requirements."""
    beside = Path(sys.executable).with_name("k6")
    found = beside if beside.is_file() else shutil.which("k6")
    if not found:
        raise RunnerError("k6 is not installed: run `make clean setup`")
    return Path(found)


def run_script(name: str, variables: Mapping[str, str], directory: Path) -> Outcome:
    """Run a script to its end, then print its output.

    Call this in the main thread (see Child). Log and summary are written to ``directory``. If
    anything is raised, k6 is stopped.
    """
    summary = directory / f"{name}.json"
    summary.unlink(missing_ok=True)
    child = Child(
        f"k6 {name}",
        [
            *(find(), "run", "--quiet", "--no-color", "--no-usage-report"),
            # An empty address: k6 opens no port for its REST API.
            *("--address", "", "--summary-export", summary, SCRIPTS / f"{name}.js"),
        ],
        log_file=directory / f"{name}.log",
        # Without the user's environment: K6_… and a configuration at home would change the load.
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory), **variables},
        cwd=directory,
    )
    try:
        exit_code = child.wait(None)
    finally:
        child.stop(grace_s=STOP_LIMIT_S)
        report(child.log_text().strip("\n"))
    metrics = json.loads(summary.read_text())["metrics"] if summary.is_file() else {}
    return Outcome(exit_code or 0, metrics)
