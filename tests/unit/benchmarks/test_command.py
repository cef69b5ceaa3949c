"""The options of the benchmark, in a process of its own as a user starts it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        # What is refused is the row: the defaults are checked before it, as what a user gives.
        (["--quick", "--rows", "no-such-row"], "no-such-row"),
        (["--rounds", "1"], "Must be >= 2"),
    ],
    ids=["unknown row", "one round"],
)
def test_an_option_that_cannot_be_used_is_refused(options: list[str], reason: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options], capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert reason in ended.stdout + ended.stderr
