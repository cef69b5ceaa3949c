"""Outages: each dependency away for a while under load, and how long sagas then take to end."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.faults.books import unfinished_sagas, wrong
from tests.faults.load import KINDS, NO_REFUND, Customers, fresh_stack
from tests.faults.stack import FaultyStack, beside
from tests.support.databases import name_of

ENDED_LIMIT_S: Final = 60.0
"""All sagas end within a minute of the dependency's return."""
DIVISOR: Final = 20
"""A quarter of an hour is compressed: the outage, and every time of the stack, is a twentieth."""
DEFAULT: Final[dict[str, str]] = {}
COMPRESSED: Final = {
    "TALLY_ORDER_SAGA_LEASE_S": "1",
    "TALLY_ORDER_SAGA_SWEEP_INTERVAL_S": "0.1",
    "TALLY_ORDER_SAGA_BACKOFF_MAX_S": "0.5",
    "TALLY_ORDER_SAGA_ATTENTION_S": "15",
    "TALLY_ORDER_PAY_WITHIN_S": "1",
    "TALLY_ORDER_ORDER_EXPIRY_S": "45",
    "TALLY_ORDER_EXPIRY_INTERVAL_S": "0.2",
    "TALLY_PAYMENT_LEASE_S": "1",
    "TALLY_PAYMENT_CONFIRM_WINDOW_S": "45",
    "TALLY_PAYMENT_RESOLVE_INTERVAL_S": "0.1",
    "TALLY_PAYMENT_GATEWAY_TIMEOUT_S": "0.5",
    "TALLY_PAYMENT_GATEWAY_BREAKER_PAUSE_S": "0.25",
}
_ROUND_S: Final = 1.5
_LOAD_AROUND_S: Final = 1.0
"""How long the load runs before and after the outage."""
_BUYERS: Final = tuple(kind for kind in KINDS if kind.pays and kind.key != NO_REFUND)
"""No person is needed for what they do."""


@dataclass(frozen=True, slots=True)
class Length:
    """How long a dependency is away."""

    name: str
    away_s: float
    settings: dict[str, str]


LENGTHS: Final = (
    Length("1 s", 1.0, DEFAULT),
    Length("30 s", 30.0, DEFAULT),
    Length("15 min", 900.0 / DIVISOR, COMPRESSED),
)


@dataclass(frozen=True, slots=True)
class Dependency:
    """A part of the stack that others need."""

    name: str
    leave: Callable[[FaultyStack], None]
    come_back: Callable[[FaultyStack], object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one outage."""

    dependency: str
    length: str
    orders: int
    open_sagas: int
    """Sagas that had not ended when the dependency was back."""
    ended_s: float | None
    """Seconds from its return until all had; None if some had not within ENDED_LIMIT_S."""
    wrong: tuple[str, ...]

    @property
    def held(self) -> bool:
        return self.ended_s is not None and not self.wrong


def _database(service: str) -> Dependency:
    def leave(stack: FaultyStack) -> None:
        name = name_of(stack.backends.databases[service])
        stack.postgres.run_sql(
            f'ALTER DATABASE "{name}" CONNECTION LIMIT 0;'
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )

    def come_back(stack: FaultyStack) -> None:
        name = name_of(stack.backends.databases[service])
        stack.postgres.run_sql(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')

    return Dependency(f"{service} database", leave, come_back)


def _service(service: str) -> Dependency:
    return Dependency(
        f"{service} service",
        lambda stack: stack.signal(service, signal.SIGKILL),
        lambda stack: stack.restart_dead(),
    )


DEPENDENCIES: Final = (
    *map(_database, ("balance", "coupon", "order", "payment")),
    *map(_service, ("balance", "coupon", "order", "payment")),
    Dependency("Redis", lambda stack: stack.kill_redis(), lambda stack: stack.redis.start()),
    Dependency("gateway", lambda stack: stack.gateway.kill(), lambda stack: stack.gateway.start()),
    # Connected, and silent: it is unknown whether a payment was charged.
    Dependency(
        "gateway, silent",
        lambda stack: stack.gateway_child.send(signal.SIGSTOP),
        lambda stack: stack.gateway_child.send(signal.SIGCONT),
    ),
)


async def run(
    report: Callable[[str], None],
    lengths: Sequence[Length] = LENGTHS,
    dependencies: Sequence[Dependency] = DEPENDENCIES,
) -> list[Outcome]:
    """Every outage, on one stack for each length as long as it heals."""
    outcomes = []
    for length in lengths:
        left = list(dependencies)
        while left:
            async with fresh_stack(length.settings) as (stack, crowd):
                while left:
                    outcome = await outage(stack, crowd, left.pop(0), length)
                    outcomes.append(outcome)
                    report(_line(outcome))
                    if not outcome.held:
                        break
    return outcomes


def _line(outcome: Outcome) -> str:
    ended = "not ended" if outcome.ended_s is None else f"ended in {outcome.ended_s:.1f} s"
    line = (
        f"{outcome.dependency} away for {outcome.length}: {outcome.orders} orders, "
        f"{outcome.open_sagas} sagas open at its return, {ended}"
    )
    return "\n      ".join((line, *outcome.wrong[:40]))


async def outage(
    stack: FaultyStack, crowd: Customers, dependency: Dependency, length: Length
) -> Outcome:
    """Take a dependency away under load, give it back, and watch the sagas end."""
    finished = len(crowd.finished)
    async with beside(_load(crowd)):
        await asyncio.sleep(_LOAD_AROUND_S)
        dependency.leave(stack)
        await asyncio.sleep(length.away_s)
        dependency.come_back(stack)
        await stack.healthy()
        back_s = time.monotonic()
        open_sagas = len(await unfinished_sagas(stack, limit_s=0))
        await asyncio.sleep(_LOAD_AROUND_S)
    left = await unfinished_sagas(stack, limit_s=back_s + ENDED_LIMIT_S - time.monotonic())
    ended_s = None if left else time.monotonic() - back_s
    await crowd.leave()
    replies = crowd.finished[finished:]
    found = [*left, *await wrong(stack, replies), *await stack.differences()]
    return Outcome(dependency.name, length.name, len(replies), open_sagas, ended_s, tuple(found))


async def _load(crowd: Customers) -> None:
    """Rounds of customers, for ever."""
    while True:
        crowd.rounds.append(asyncio.create_task(crowd.round(crowd.shop, _BUYERS)))
        await asyncio.sleep(_ROUND_S)
