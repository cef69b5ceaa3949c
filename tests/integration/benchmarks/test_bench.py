"""The benchmark on a real stack, for moments: the report is complete, the books balance."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.plan import PROJECT

ROWS = ("get-balance", "pay-alone")
LIMIT_S = 240


@pytest.mark.timeout(LIMIT_S + 30)
def test_short_run_reports_its_rows_and_audits_the_stack(tmp_path: Path) -> None:
    results = tmp_path / "results"
    command: list[str | Path] = [
        *(sys.executable, "-m", "benchmarks", "--quick", "--rows", ",".join(ROWS)),
        *("--seconds", "0.1", "--rounds", "2", "--accounts", "20"),
        *("--results", results, "--data-dir", tmp_path / "data"),
    ]
    done = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

    report = (results / "report.md").read_text(encoding="utf-8")
    targets = report.split("### Targets")[1].split("###")[0]
    assert "GetBalance ÷ empty" in targets
    assert "one caller: CreateOrder + PayOrder" in targets
    assert "- main: The books balance." in report
    assert (results / "ratios.svg").read_bytes().rstrip().endswith(b"</svg>")
    with (results / "periods.csv").open() as file:
        periods = list(csv.DictReader(file))
    assert [(period["row"], period["side"], period["round"]) for period in periods] == [
        (row, side, number) for row in ROWS for side in ("yardstick", "subject") for number in "12"
    ]
    assert all(int(period["units"]) > 0 for period in periods)
    assert list((tmp_path / "data").iterdir()) == []
