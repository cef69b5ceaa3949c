"""What a process has used is read from /proc."""

from __future__ import annotations

import time

from benchmarks.processes import LOAD, TICKS_PER_S, usage

TICKS = 5
"""/proc counts whole ticks."""


def test_usage_of_a_process_is_what_it_used() -> None:
    before, start_s = usage(), time.process_time()
    while time.process_time() - start_s < TICKS / TICKS_PER_S:
        sum(range(10_000))
    after = usage()
    assert after.since(before).get(LOAD, 0.0) > 0
    assert after.rss_bytes[LOAD] > 10_000_000
