"""Every period of the run as a line of CSV, for a reader's own arithmetic."""

from __future__ import annotations

import csv
import io

from benchmarks.figures import Period
from benchmarks.run import Results


def as_csv(results: Results) -> str:
    """One line per period; processor seconds and memory of each process have columns."""
    measured = results.measurements
    periods = [p for one in measured for p in (*one.subjects, *one.yardsticks)]
    processes = sorted({name for period in periods for name in period.rss_bytes})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *("row", "callers", "round", "side", "what", "seconds", "units", "steps", "failed"),
            *("p50_ms", "p99_ms"),
            *(f"cpu_s {name}" for name in processes),
            *(f"rss_bytes {name}" for name in processes),
        ]
    )
    for one in measured:
        for side, rounds in (("yardstick", one.yardsticks), ("subject", one.subjects)):
            for number, period in enumerate(rounds, 1):
                head = (one.row.key, one.callers, number, side)
                writer.writerow([*head, *_columns(period, processes)])
    return out.getvalue()


def _columns(period: Period, processes: list[str]) -> list[object]:
    return [
        period.subject,
        f"{period.seconds:.3f}",
        period.units,
        period.steps,
        period.failed.total(),
        f"{period.p50_ms:.3f}",
        f"{period.p99_ms:.3f}",
        *(f"{period.cpu_s.get(name, 0.0):.2f}" for name in processes),
        *(period.rss_bytes.get(name, 0) for name in processes),
    ]
