"""The report's arithmetic: a ratio counts only if its run was steady and its calls succeeded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.figures import Measurement, Period
from benchmarks.parts.soak import Memory
from benchmarks.postgres import PostgresUse
from benchmarks.report.markdown import as_markdown
from benchmarks.report.origin import Origin
from benchmarks.rows import (
    BULK_CALLERS,
    CALLERS,
    ROWS,
    WAITERS,
    Figure,
    Row,
    at_least,
    at_most,
    selected,
)
from benchmarks.run import Results

ROW = Row("it", "it ÷ empty", "it", at_least(0.5))
STEADY = (1000.0, 1000.0, 1000.0)


def period(
    per_second: float, *, p50_ms: float = 1.0, p99_ms: float = 2.0, failed: int = 0
) -> Period:
    units = round(per_second)
    return Period(
        *("what", 200, units, 1.0, p50_ms, p99_ms, units),
        Counter({"status 14": failed}),
        cpu_s={"balance": 0.25},
        rss_bytes={"balance": 100_000_000},
    )


def measured(
    subjects: Sequence[Period], yardsticks: Sequence[Period], row: Row = ROW, syncs: float = 0
) -> Measurement:
    steps = sum(one.steps for one in subjects)
    use = PostgresUse(syncs=syncs)
    return Measurement(row, row.at, subjects, yardsticks, use, steps, sync_ms=0.5)


@pytest.mark.parametrize(
    ("rates", "yardstick", "failed", "verdict"),
    [
        ((600, 500, 700), STEADY, 0, "reached"),
        ((400, 500, 300), STEADY, 0, "missed"),
        ((600, 600, 600), (1000, 1050, 960), 0, "reached"),
        ((600, 600, 600), (1000, 1050, 950), 0, "does not count: the yardstick varies by 10%"),
        ((400, 400, 400), (1000, 1300, 900), 0, "does not count: the yardstick varies by 40%"),
        ((600, 600, 600), STEADY, 6, "reached"),
        ((600, 600, 600), STEADY, 7, "does not count: calls failed"),
        ((0, 0, 0), STEADY, 1, "does not count: calls failed"),
        ((600, 600, 600), (0, 0, 0), 0, "does not count: nothing succeeded"),
    ],
)
def test_verdict(
    rates: Sequence[float], yardstick: Sequence[float], failed: int, verdict: str
) -> None:
    one = measured([period(rate, failed=failed) for rate in rates], [period(y) for y in yardstick])
    assert one.verdict == verdict


def test_ratio_is_the_median_of_neighbouring_periods() -> None:
    one = measured([period(r) for r in (100, 300, 200)], [period(r) for r in (100, 100, 400)])
    assert one.ratios == [1.0, 3.0, 0.5]
    assert one.ratio == 1.0


@pytest.mark.parametrize(
    ("figure", "ratio"),
    [
        (Figure.RATE, 0.1),
        (Figure.LATENCY, 4.0),
        (Figure.LATENCY_LESS_SYNCS, 3.0),  # two syncs of 0.5 ms each
        (Figure.TAIL, 9.0),
        (Figure.TAILS, 3.0),
    ],
)
def test_what_a_figure_divides(figure: Figure, ratio: float) -> None:
    row = Row("it", "it", "it", at_most(9), figure=figure)
    subjects, yardsticks = [period(100, p50_ms=4, p99_ms=9)], [period(1000, p50_ms=1, p99_ms=3)]
    one = measured(subjects, yardsticks, row, syncs=200)
    assert one.ratio == pytest.approx(ratio)
    assert one.verdict == "reached"


def test_only_the_callers_of_the_target_have_a_verdict() -> None:
    one = Measurement(ROW, 64, [period(1)], [period(1)], PostgresUse(), 1, 0.0)
    assert one.verdict == ""


def test_processor_time_is_per_unit_and_per_core() -> None:
    one = measured([period(500), period(500)], [period(1000)] * 2)
    assert one.cpu_us == {"balance": 500.0}
    assert one.cores == {"balance": 0.25}


def test_ratio_by_processor_time_is_of_the_busiest_servers() -> None:
    def used(units: int, **cpu_s: float) -> Period:
        return replace(period(units), cpu_s={"PostgreSQL": 9.0, **cpu_s})

    one = measured(
        [used(500, balance=0.5, order=0.25), used(500, balance=1.0)],
        [used(1000, **{"empty method": 0.5})] * 2,
    )
    assert one.processor_ratios == [0.5, 0.25]
    assert "| 0.375 (0.25-0.5) |" in as_markdown(Results([one]), Origin([]))
    idle = [used(1000, **{"empty method": 0.1})]
    assert not measured([used(500, balance=0.5)], idle).processor_ratios


def test_report_marks_a_row_whose_yardstick_is_not_steady() -> None:
    shaky = measured([period(600)] * 2, [period(900), period(1100)])
    text = as_markdown(Results(measurements=[shaky]), Origin(["Machine: 2 cores"]))
    assert "| 0.606 (0.545-0.667) | 20% | does not count: the yardstick varies by 20% |" in text


@pytest.mark.parametrize(
    ("mb", "holds"),
    [
        ([90, 100, 110, 110, 110, 111], True),
        ([90, 100, 110, 110, 120, 121], False),
        ([90, 131, 110, 110, 110, 110], False),
    ],
)
def test_memory_has_to_be_small_and_flat(mb: list[float], holds: bool) -> None:
    assert Memory("balance", mb).holds is holds


def test_rows_are_distinct_and_measured_where_their_target_is() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.at in row.callers, row.key
        assert set(row.callers) <= {*CALLERS, *BULK_CALLERS, *WAITERS}, row.key


def test_rows_are_selected_by_key_and_by_part() -> None:
    assert selected("") == ROWS
    assert [row.key for row in selected("issue, big")] == ["issue", "big", "big-all"]
    assert selected("soak") == ()
    with pytest.raises(ValueError, match="no such row or part: isue"):
        selected("isue")


def test_empty_ratio_is_not_a_number() -> None:
    assert math.isnan(measured([period(1)], [period(0)]).ratio)
