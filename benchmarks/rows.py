"""The rows of the report: what is measured, by what it is divided, and the target.

A subject is named as in ``benchmarks/parts``. The figure of a row counts only from a run in which
its yardstick varied by less than ``SPREAD_MAX``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

SPREAD_MAX: Final = 0.10
"""(highest - lowest) / median of the yardstick's periods."""
FAILED_MAX: Final = 0.01
"""Part of the steps that may fail, the subject's and the yardstick's each."""
CALLERS: Final = (1, 64, 200)
TOP_CALLERS: Final = CALLERS[-1]

Part: TypeAlias = Literal["main", "locks", "replicas", "big", "soak"]


class Figure(enum.Enum):
    """What of the subject is divided by what of the yardstick."""

    RATE = "units per second ÷ units per second"
    LATENCY = "p50 ÷ p50"
    LATENCY_LESS_SYNCS = "(p50 less the log syncs of a step) ÷ p50"
    TAILS = "p99 ÷ p99"
    TAIL = "p99 ÷ p50, both at a quarter of the subject's top rate"


@dataclass(frozen=True, slots=True)
class Target:
    """A bound of the ratio, inclusive."""

    value: float
    at_most: bool = False

    def reached(self, ratio: float) -> bool:
        return ratio <= self.value if self.at_most else ratio >= self.value

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line. ``callers`` are all at which it is measured; the target is for ``at``."""

    key: str
    what: str
    subject: str
    target: Target | None
    yardstick: str = "empty"
    figure: Figure = Figure.RATE
    callers: tuple[int, ...] = CALLERS
    at: int = TOP_CALLERS
    part: Part = "main"
    yardstick_callers: int | None = None
    """If not those of the subject."""


def at_least(value: float) -> Target:
    return Target(value)


def at_most(value: float) -> Target:
    return Target(value, at_most=True)


def against(yardstick: str, waiters: int, target: float | None, what: str) -> Row:
    """A row of handoffs between waiters of 4 processes, which acquire once each."""
    return Row(
        f"{yardstick}-{waiters}",
        f"{waiters} waiters: handoffs ÷ {what}",
        "handoff",
        None if target is None else at_least(target),
        yardstick=yardstick,
        callers=(waiters,),
        at=waiters,
        part="locks",
    )


BULK_CALLERS: Final = (1, 4)
"""A replica serves four bulk calls of 1,000 items at once by default."""
WAITERS: Final = (2, 16, 200, 1000)
"""For a lock."""
TOP: Final = (TOP_CALLERS,)
ONE: Final = (1,)

SERVICE_ROWS: Final = (
    Row("deduct", "DeductBalance, 10,000 accounts ÷ empty", "deduct", at_least(0.80)),
    Row("deduct-hot", "DeductBalance, 1 account ÷ empty", "deduct-hot", at_least(0.80)),
    Row("charge", "ChargeBalance, 10,000 accounts ÷ empty", "charge", at_least(0.80)),
    Row("charge-hot", "ChargeBalance, 1 account ÷ empty", "charge-hot", at_least(0.80)),
    Row("get-balance", "GetBalance ÷ empty", "get-balance", at_least(0.80)),
    Row("get-product", "GetProduct ÷ empty", "get-product", at_least(0.80)),
    Row("get-order", "GetOrder ÷ empty", "get-order", at_least(0.80)),
    Row("issue", "IssueCoupon, one campaign ÷ empty", "issue", at_least(0.75)),
    Row("order", "CreateOrder, 3 of 300 products ÷ empty", "order", at_least(0.60)),
    Row(
        "order-hot",
        "CreateOrder, all on 3 products ÷ 3 of 300",
        "order-hot",
        at_least(0.90),
        yardstick="order",
    ),
    Row(
        "order-seats",
        "CreateOrder, a seat each of 3 of 300 products ÷ without seats (no target)",
        "order-seats",
        None,
        yardstick="order",
    ),
    Row("pay", "CreateOrder + PayOrder, balance: pairs ÷ empty", "pay", at_least(0.20)),
    Row(
        "pay-all",
        "CreateOrder + PayOrder, coupon, balance, gateway of 0 ms: pairs ÷ empty",
        "pay-all",
        at_least(0.08),
    ),
    Row(
        "batch-write",
        "BatchWrite, items ÷ empty calls at 200 callers",
        "batch-write",
        at_least(5),
        callers=BULK_CALLERS,
        at=BULK_CALLERS[-1],
        yardstick_callers=TOP_CALLERS,
    ),
    Row(
        "batch-issue",
        "BatchIssueCoupons, items ÷ empty calls at 200 callers",
        "batch-issue",
        at_least(3),
        callers=BULK_CALLERS,
        at=BULK_CALLERS[-1],
        yardstick_callers=TOP_CALLERS,
    ),
    Row(
        "deduct-alone",
        "one caller: DeductBalance p50, less its log sync ÷ empty p50",
        "deduct",
        at_most(4),
        figure=Figure.LATENCY_LESS_SYNCS,
        callers=ONE,
        at=1,
    ),
    Row(
        "pay-alone",
        "one caller: CreateOrder + PayOrder, balance: p50, less its log syncs ÷ empty p50",
        "pay",
        at_most(20),
        figure=Figure.LATENCY_LESS_SYNCS,
        callers=ONE,
        at=1,
    ),
    Row(
        "deduct-tail",
        "at a quarter of the top rate: DeductBalance p99 ÷ empty p50",
        "deduct",
        at_most(10),
        figure=Figure.TAIL,
        callers=TOP,
    ),
    Row(
        "limits",
        "DeductBalance, 10,000 accounts: rates limited, below a replica's share ÷ not limited",
        "deduct-limited",
        at_least(0.95),
        yardstick="deduct",
        callers=TOP,
    ),
    Row(
        "limits-shared",
        "DeductBalance, 1 account: rates limited, Redis asked about nearly all ÷ not limited",
        "deduct-limited-hot",
        at_least(0.95),
        yardstick="deduct-hot",
        callers=TOP,
    ),
    Row(
        "orm",
        "DeductBalance, 10,000 accounts ÷ ORM and polling lock",
        "deduct",
        at_least(4),
        yardstick="orm",
        callers=TOP,
    ),
    Row(
        "orm-hot",
        "DeductBalance, 1 account ÷ ORM and polling lock",
        "deduct-hot",
        at_least(8),
        yardstick="orm-hot",
        callers=TOP,
    ),
    Row(
        "dbos",
        "CreateOrder + PayOrder, balance ÷ the same as a DBOS workflow, 64 at once",
        "pay",
        at_least(8),
        yardstick="dbos",
        callers=(64,),
        at=64,
    ),
    Row(
        "dbos-alone",
        "one caller: p50 of CreateOrder + PayOrder, balance ÷ p50 of the DBOS workflow",
        "pay",
        at_most(1),
        yardstick="dbos",
        figure=Figure.LATENCY,
        callers=ONE,
        at=1,
    ),
    Row(
        "pgbench-hot",
        "DeductBalance, 1 account ÷ pgbench, 1 account (no target)",
        "deduct-hot",
        None,
        yardstick="pgbench",
        callers=(64,),
        at=64,
    ),
    Row(
        "replicas-2",
        "2 replicas ÷ 1, DeductBalance on 1 account",
        "2 replicas",
        at_least(0.95),
        yardstick="1 replica",
        callers=TOP,
        part="replicas",
    ),
    Row(
        "replicas-4",
        "4 replicas ÷ 1, DeductBalance on 1 account",
        "4 replicas",
        at_least(0.95),
        yardstick="1 replica",
        callers=TOP,
        part="replicas",
    ),
    Row(
        "shares",
        "4 replicas, IssueCoupon on one campaign: 8 shares ÷ 1 (no target)",
        "8 shares",
        None,
        yardstick="1 share",
        callers=TOP,
        part="replicas",
    ),
    Row(
        "big",
        "large ledger ÷ small, DeductBalance on the same 10,000 accounts",
        "large, same accounts",
        at_least(0.90),
        yardstick="small",
        callers=TOP,
        part="big",
    ),
    Row(
        "big-all",
        "large ledger, on all its accounts ÷ small",
        "large, all accounts",
        at_least(0.90),
        yardstick="small",
        callers=TOP,
        part="big",
    ),
)
LOCK_ROWS: Final = (
    Row(
        "locks-free",
        "a lock without contention ÷ its two script calls",
        "locks-free",
        at_least(0.95),
        yardstick="scripts",
        callers=ONE,
        at=1,
        part="locks",
    ),
    *(against("redis-py", waiters, 20, "redis-py's Lock") for waiters in (2, 16, 200)),
    against("redis-py-1ms", 2, 1.2, "redis-py's Lock, sleep 1 ms"),
    *(against("redis-py-1ms", waiters, 3, "redis-py's Lock, sleep 1 ms") for waiters in (16, 200)),
    against("python-redis-lock", 16, None, "python-redis-lock (no target)"),
    against("pottery", 16, None, "pottery's AIORedlock (no target)"),
    *(against("hop", waiters, 0.7, "one script and one publish") for waiters in (2, 16, 1000)),
    Row(
        "handoff-tail",
        "200 waiters: p99 of a handoff ÷ p99 of PINGs of the same processes meanwhile",
        "handoff",
        at_most(5),
        yardstick="pings",
        figure=Figure.TAILS,
        callers=TOP,
        part="locks",
    ),
)
ROWS: Final = SERVICE_ROWS + LOCK_ROWS
RSS_MAX_MB: Final = 130
"""The target of the part ``soak``: memory of a replica under each kind of load in turn, which
does not grow."""


def selected(names: str) -> tuple[Row, ...]:
    """The rows of a list of keys and parts, separated by commas; empty: all. Raises ValueError."""
    wanted = {name.strip() for name in names.split(",")} - {""}
    unknown = wanted - {row.key for row in ROWS} - {row.part for row in ROWS} - {"soak"}
    if unknown:
        raise ValueError(f"no such row or part: {', '.join(sorted(unknown))}")
    return tuple(row for row in ROWS if not wanted or wanted & {row.key, row.part})
