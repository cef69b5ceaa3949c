"""Queries: the PromQL of each form, and its values over two readings of the pages."""

from __future__ import annotations

import math

import pytest

from deploy.monitoring.queries import Mean, Now, Quantile, Query, Rate, Series, Share, Since
from deploy.monitoring.readings import Page, Reading, read_pages

CALLS = Series("calls_total", {"code": "OK"}, {"method": ".*/Watch.*"})
ALL = Series("calls_total")
NAMES = ("calls_total", "took_bucket", "took_sum", "took_count", "waiting", "done_at")


def reading(taken_s: float, **pages: str) -> Reading:
    """A reading of these replicas' pages."""
    read = [Page(name.partition("_")[0], name, text) for name, text in pages.items()]
    return read_pages(read, NAMES, taken_s=taken_s, unix_s=1_000.0 + taken_s)


def page(calls: int, failed: int, *, waiting: int = 0, done_at: int = 0) -> str:
    """A page on which the calls took 0.05 s each, but for those that failed, which took 0.4 s."""
    return (
        "# HELP calls_total Calls.\n"
        f'calls_total{{method="/a/Do",code="OK"}} {calls}\n'
        f'calls_total{{method="/a/Watch",code="OK"}} 7\n'
        f'calls_total{{method="/a/Do",code="UNAVAILABLE"}} {failed}\n'
        f'calls_total_ignored{{method="/a/Do"}} 1\n'
        f'took_bucket{{le="0.1"}} {calls}\n'
        f'took_bucket{{le="0.5"}} {calls + failed}\n'
        f'took_bucket{{le="+Inf"}} {calls + failed}\n'
        f"took_sum {0.05 * calls + 0.4 * failed}\n"
        f"took_count {calls + failed}\n"
        f'waiting{{lane="x"}} {waiting}\n'
        f"done_at {done_at}\n"
    )


THEN = reading(0.0, a_0=page(100, 0), a_1=page(50, 10), b_0=page(0, 0))
NOW = reading(
    10.0,
    a_0=page(180, 20, waiting=3, done_at=900),
    a_1=page(60, 10, waiting=2, done_at=1_000),
    b_0=page(0, 0, waiting=1),
)


@pytest.mark.parametrize(
    ("query", "promql", "values"),
    [
        pytest.param(
            Rate(CALLS, ("service",)),
            'sum by (service) (rate(calls_total{code=~"OK",method!~".*/Watch.*"}[w]))',
            {("a",): 9.0, ("b",): 0.0},
            id="rate per second",
        ),
        pytest.param(
            Rate(ALL, ("code",), 60, top=1),
            "topk(1, 60 * sum by (code) (rate(calls_total[w])))",
            {("OK",): 540.0},
            id="rate per minute, the highest",
        ),
        pytest.param(
            Share(Rate(Series("calls_total", {"code": "UNAVAILABLE"})), Rate(ALL)),
            '(sum (rate(calls_total{code=~"UNAVAILABLE"}[w]))'
            " or 0 * sum (rate(calls_total[w]))) / sum (rate(calls_total[w]))",
            {(): 2 / 11},
            id="share",
        ),
        pytest.param(
            Quantile(0.5, Series("took"), ("service",)),
            "histogram_quantile(0.5, sum by (le, service) (rate(took_bucket[w])))",
            {("a",): 0.1 * 55 / 90, ("b",): math.nan},
            id="quantile in the first bucket",
        ),
        pytest.param(
            Quantile(0.9, Series("took"), ("service",)),
            "histogram_quantile(0.9, sum by (le, service) (rate(took_bucket[w])))",
            {("a",): 0.1 + 0.4 * 9 / 20, ("b",): math.nan},
            id="quantile in the second bucket",
        ),
        pytest.param(
            Mean(Series("took"), ("service",)),
            "sum by (service) (rate(took_sum[w])) / sum by (service) (rate(took_count[w]))",
            {("a",): (90 * 0.05 + 20 * 0.4) / 110, ("b",): math.nan},
            id="mean",
        ),
        pytest.param(
            Now("sum", Series("waiting"), ("lane",)),
            "sum by (lane) (waiting)",
            {("x",): 6.0},
            id="sum of gauges",
        ),
        pytest.param(Now("max", Series("waiting")), "max (waiting)", {(): 3.0}, id="highest gauge"),
        pytest.param(
            Since(Series("done_at")), "time() - max (done_at)", {(): 10.0}, id="time since"
        ),
    ],
)
def test_query(query: Query, promql: str, values: dict[tuple[str, ...], float]) -> None:
    assert query.promql("w") == promql
    assert query.values(THEN, NOW) == pytest.approx(values, nan_ok=True)


@pytest.mark.parametrize(
    ("then", "now", "increase"),
    [
        pytest.param(page(100, 0), page(30, 0), 30, id="a restarted replica counts from 0"),
        pytest.param("other 1\n", page(30, 0), 30, id="a series that is new counts from 0"),
        pytest.param(None, page(30, 0), None, id="a replica that is new does not count yet"),
        pytest.param(page(100, 0), None, None, id="a replica that is away does not count"),
    ],
)
def test_increase_of_a_counter(then: str | None, now: str | None, increase: float | None) -> None:
    before, after = (
        reading(taken_s, **({} if text is None else {"a_0": text}))
        for taken_s, text in ((0.0, then), (10.0, now))
    )
    found = Rate(CALLS, period_s=10).values(before, after)
    assert found == ({} if increase is None else {(): pytest.approx(increase)})
