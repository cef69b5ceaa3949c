"""The reports' own figures, measured on another machine in Java or Kotlin. Not ours."""

from __future__ import annotations

from typing import Final

COMPUTED: Final = "computed there, with two assumed conflicts"
THEIRS: Final = {
    ("charge", "around"): f"5,500 ms, all 10 succeed ({COMPUTED})",
    ("charge", "inside"): f"1,000 ms, all 10 succeed ({COMPUTED})",
    ("deduct", "pessimistic"): "442 ms, 100 of 100",
    ("deduct", "optimistic"): "242 ms, 14 of 100",
    ("coupons", "pessimistic"): "about 99 % of duplicates stop at the first check",
    ("orders", "sorted"): "row locks held about 50 ms",
    ("payments", "flag"): "fails (1/1/3, 0/5/0 ...)",
    ("payments", "optimistic"): "fails (1/1/3, 0/5/0 ...)",
    ("payments", "conditional"): "1/4/0 every time, p95 599 ms",
    ("payments", "unique"): "1/4/0 every time",
    ("payments", "mark"): "1/4/0 every time, p95 427 ms",
}
"""By experiment and strategy; of payments: succeeded, refused and errored of five."""
