"""The experiments on accounts: charge (R1), deduct (R2), and charges of many accounts."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from benchmarks.lab import accounts
from benchmarks.lab.experiment import Experiment, Strategy, plan_copies
from benchmarks.lab.size import Request, Size


def _met(strategy: Strategy) -> Strategy:
    """The strategy, with an interferer that writes twice for each request whatever happens."""
    if strategy.consume is not None:
        return replace(strategy, consume=accounts.touched_throughout(strategy.consume))
    return replace(strategy, run=accounts.touched_throughout(strategy.run))


_CHARGE_SIZE: Final = Size(requests=10, quantity=100, amount=100, work_ms=100.0)
CHARGE: Final = Experiment(
    key="charge",
    title="R1. Charge: ten at once, with slow work and an interferer",
    what="{requests} charges of {amount} on one account at once, {work_ms:g} ms of work in each "
    "transaction; a program that takes no lock moves the row's version twice per charge. Pauses "
    "between attempts: 50 and 100 ms.",
    full=_CHARGE_SIZE,
    quick=_CHARGE_SIZE,
    tiny=replace(_CHARGE_SIZE, requests=4, work_ms=20.0, processes=2, sessions=3),
    schema=accounts.SCHEMA,
    fill=accounts.fill,
    warm_up=accounts.WARM_UP,
    plan=plan_copies,
    strategies={
        key: _met(strategy)
        for key, strategy in {
            **accounts.COMMON,
            "around": accounts.AROUND,
            "inside": accounts.INSIDE,
            "queue": accounts.QUEUE,
            "lane": accounts.LANE,
            "lane-each": accounts.LANE_WORK_EACH,
        }.items()
    },
    audit=accounts.audit,
    interferer=True,
)

_DEDUCT_SIZE: Final = Size(requests=100, quantity=100_000, amount=-500, limit_s=15.0)
DEDUCT: Final = Experiment(
    key="deduct",
    title="R2. Deduct: a hundred at once from one account",
    what="{requests} deductions of 500 from one account of {quantity:,} at once.",
    full=_DEDUCT_SIZE,
    quick=replace(_DEDUCT_SIZE, limit_s=8.0),
    tiny=replace(_DEDUCT_SIZE, requests=20, processes=2, sessions=3, limit_s=3.0),
    schema=accounts.SCHEMA,
    fill=accounts.fill,
    warm_up=accounts.WARM_UP,
    plan=plan_copies,
    strategies={
        **accounts.COMMON,
        "share": accounts.SHARE,
        "queue": accounts.QUEUE,
        "lane": accounts.LANE,
    },
    audit=accounts.audit,
)


def plan_anywhere(size: Size, seed: int) -> list[Request]:
    """Each request on an account of its own choice."""
    choice = random.Random(seed)
    return [
        Request(number, thing=choice.randrange(size.things), user=number)
        for number in range(size.requests)
    ]


_UNIFORM_SIZE: Final = Size(
    requests=10_000, things=10_000, quantity=100, amount=1, callers=64, limit_s=60.0
)
UNIFORM: Final = Experiment(
    key="uniform",
    title="Uniform: charges spread over many accounts",
    what="{requests:,} charges over {things:,} accounts at random; {callers} callers in each "
    "process.",
    full=_UNIFORM_SIZE,
    quick=replace(_UNIFORM_SIZE, requests=1_000, things=1_000, limit_s=10.0),
    tiny=replace(_UNIFORM_SIZE, requests=120, things=3, callers=20, processes=2, sessions=3),
    schema=accounts.SCHEMA,
    fill=accounts.fill,
    warm_up=accounts.WARM_UP,
    plan=plan_anywhere,
    strategies={
        **{key: each for key, each in accounts.COMMON.items() if key != "optimistic+1"},
        "queue": accounts.QUEUE,
        "lane": accounts.LANE,
    },
    audit=accounts.audit,
)
