"""Known vulnerabilities of the locked packages, by pip-audit.

pip-audit asks the advisory database of PyPI about each package, over the network. Its exit code and
its last line do not say whether anything was looked up: a mirror without advisories answers that
it knows no package, and pip-audit then found "no known vulnerabilities". So its report decides, and
what was not looked up is counted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.local.errors import RunnerError
from deploy.supply.packages import locks

LIMIT_S: Final = 300
"""For the packages of one lock."""
REQUEST_LIMIT_S: Final = 5
ACCEPTED: Final[Mapping[str, str]] = {}
"""Vulnerabilities that do not concern Tally: why, by their ids (``PYSEC-…``, ``GHSA-…``)."""
UNREACHABLE: Final = re.compile(
    r"^requests\.exceptions\.(ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError"
    r"|ChunkedEncodingError|RetryError)\b"
    r"|^pip_audit\._service\.interface\.ServiceError$"  # with a text it is about an answer
    r"|Could not connect to (PyPI|OSV)'s vulnerability feed$"
    r"|PyPI is not redirecting properly$"
    r"|^Timeout: ",
    re.MULTILINE,
)
"""A line that pip-audit writes when the database does not answer, or ``_run_pip_audit`` does."""


@dataclass(frozen=True)
class Finding:
    """A vulnerability of a package."""

    package: str
    version: str
    id: str
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        fixed = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no version without it"
        return f"{self.package} {self.version}: {self.id} ({fixed})"


@dataclass(frozen=True)
class Report:
    """What is known of the packages."""

    findings: frozenset[Finding] = frozenset()
    """Those that are not in ACCEPTED."""
    checked: frozenset[str] = frozenset()
    """The packages that were looked up."""
    unchecked: frozenset[str] = frozenset()
    """Those that the database does not know."""

    def __or__(self, other: Report) -> Report:
        return Report(
            self.findings | other.findings,
            self.checked | other.checked,
            self.unchecked | other.unchecked,
        )


class AdvisoriesUnreachableError(Exception):
    """The advisory database does not answer. The text says how."""

    def __init__(self, problem: str, report: Report) -> None:
        """``report``: what was looked up before."""
        super().__init__(problem)
        self.report = report


def look_up(files: Sequence[Path] | None = None, *options: str) -> Report:
    """Look up the packages of all locks, or of these; ``options`` are passed to pip-audit.

    Raises AdvisoriesUnreachableError, and RunnerError if pip-audit fails for another reason.
    """
    report = Report()
    # The smallest first: a database that knows none of its packages is not asked for the others.
    for lock in sorted(files or locks(), key=lambda one: one.stat().st_size):
        with tempfile.TemporaryDirectory(prefix="tally-advisories-") as scratch:
            output = Path(scratch, "report.json")
            error = _run_pip_audit(lock, output, options)
            if not output.exists():
                if UNREACHABLE.search(error):
                    raise AdvisoriesUnreachableError(error.splitlines()[-1][:200], report)
                raise RunnerError(f"pip-audit failed for {lock.name}:\n{error}")
            report |= read(json.loads(output.read_text(encoding="utf-8")))
        if not report.checked:
            raise AdvisoriesUnreachableError(
                f"it knows none of the {len(report.unchecked)} packages in {lock.name}", report
            )
    return report


def read(written: Mapping[str, Any]) -> Report:
    """The content of a report that pip-audit wrote."""
    checked = [each for each in written["dependencies"] if "skip_reason" not in each]
    return Report(
        frozenset(
            Finding(package["name"], package["version"], each["id"], tuple(each["fix_versions"]))
            for package in checked
            for each in package["vulns"]
            if ACCEPTED.keys().isdisjoint({each["id"], *each["aliases"]})
        ),
        frozenset(each["name"] for each in checked),
        frozenset(each["name"] for each in written["dependencies"] if "skip_reason" in each),
    )


def _run_pip_audit(lock: Path, output: Path, options: Sequence[str]) -> str:
    """Run it over a lock; returns what it wrote to stderr."""
    given = ["--disable-pip", "--require-hashes", "--progress-spinner=off", "--aliases=on"]
    given += [f"--timeout={REQUEST_LIMIT_S}", "--format=json", f"--output={output}"]
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "pip_audit", *given, f"--requirement={lock}", *options],
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"Timeout: not all packages were looked up in {LIMIT_S} s"
    return ended.stderr.strip()
