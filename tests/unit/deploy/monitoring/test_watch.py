"""The picture of `make watch`: its size, and what it says about a stack."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deploy.watch.figures import number, seconds, sparkline
from deploy.watch.frame import HEIGHT, WIDTH, frame
from deploy.watch.history import WINDOW_S, History
from tests.unit.deploy.monitoring.pages import SERVICES, audit_page, reading

REPLICAS = [f"{service}-{number}" for service in SERVICES for number in range(2)]


def picture(
    width: int = WIDTH, height: int = HEIGHT, *, without: str = "", breaches: int | None = None
) -> list[str]:
    """The lines of the picture after some seconds of even load; ``breaches``: an audit runs."""
    history = History()
    replicas = REPLICAS if breaches is None else [*REPLICAS, "audit-0"]
    for at_s in map(float, range(1, 13)):
        audit = None if breaches is None else audit_page(at_s, breaches=breaches)
        history.add(reading(at_s, without=without, audit=audit))
    console = Console(width=width, color_system=None, file=io.StringIO())
    with console.capture() as captured:
        console.print(frame(replicas, history), height=height)
    return captured.get().rstrip("\n").splitlines()


@pytest.mark.parametrize(("width", "height"), [(100, 30), (120, 40), (200, 60)])
def test_picture_fills_the_terminal(width: int, height: int) -> None:
    lines = picture(width, height)
    assert len(lines) == height
    assert {len(line) for line in lines[1:]} == {width}


def test_nothing_is_cut_off_at_100_by_30() -> None:
    assert "…" not in "\n".join(picture())


@pytest.mark.parametrize(
    "text",
    [
        "8 of 8 replicas serve",
        "circuit open: gateway.confirm",
        "order          60  ███████████ 10 ms 550 ms    6",
        "COUPON_SOLD_OUT                           33",
        "UNAVAILABLE GATEWAY_UNAVAILABLE",
        "account       10  80 ms   320     4     2      0",
        "locks p99       wait 10 ms  hold 99 ms",
        "loop lag",
        "failed undos 1",
        "going forward                      12      1.4 s",
        "need attention                      2     12 min",
        "unknown     3, the oldest 61.0 s",
        "no refund   1, the oldest 2 h",
        "audit       no verdict",
        "orders/min  create 3000  pay 0  cancel 0",
    ],
)
def test_picture_says(text: str) -> None:
    assert text in "\n".join(picture())


def test_replica_that_does_not_answer_is_named() -> None:
    assert "7 of 8 replicas serve, payment-1 away" in picture(without="payment-1")[0]


@pytest.mark.parametrize(
    ("breaches", "header", "line"),
    [
        (0, "8 of 8 replicas serve, circuit", "audit       holds 2 min ago, KRW 12k stands"),
        (3, "replicas serve, the books do not balance", "audit       3 breaches 2 min ago"),
    ],
)
def test_verdict_of_the_audit_is_shown(breaches: int, header: str, line: str) -> None:
    lines = picture(breaches=breaches)
    assert header in lines[0]
    assert line in "\n".join(lines)
    assert "…" not in "\n".join(lines)


def test_rates_are_those_of_the_last_ten_seconds() -> None:
    history = History()
    for at_s in range(100):
        history.add(reading(float(at_s)))
        assert history.window_s == min(at_s, WINDOW_S)


@pytest.mark.parametrize(
    ("value", "count", "time"),
    [
        (0.0, "0", "0.0 ms"),
        (0.004, "<0.1", "4.0 ms"),
        (0.25, "0.2", "250 ms"),
        (1.0, "1", "1.0 s"),
        (9.96, "10", "10.0 s"),
        (99.0, "99", "99.0 s"),
        (100.0, "100", "2 min"),
        (12_345.0, "12k", "3 h"),
        (float("nan"), "–", "–"),
    ],
)
def test_figures_are_short(value: float, count: str, time: str) -> None:
    assert (number(value), seconds(value)) == (count, time)


@pytest.mark.parametrize(
    ("values", "line"),
    [([], "    "), ([0.0, 0.0], "  ▁▁"), ([1.0, 4.0], "  ▃█"), ([9, 9, 1, 2, 4, 8], "▂▃▅█")],
)
def test_sparkline(values: list[float], line: str) -> None:
    assert sparkline(values, 4).plain == line
