"""Which fault happens when, where and for how long: all of it from one seed.

A run has rounds. In the first three quarters of a round each kind of fault happens once, some at
the same time; in the last quarter there is none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.faults.matrix import LEASE_S

ROUND_S: Final = 40.0
FAULTY: Final = 0.75
SERVICES: Final = ("balance", "coupon", "order", "payment")
REPLICAS: Final = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: ``action`` on one of the targets, for a random time in the range.

    ``times``: how often in each round.
    """

    action: str
    place: str
    targets: tuple[str, ...]
    least_s: float = 0.5
    most_s: float = 2.0
    times: int = 1

    def __str__(self) -> str:
        return f"{self.action} {self.place}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a round; ``at_s`` is after the round's begin."""

    at_s: float
    kind: Kind
    target: str
    duration_s: float

    def __str__(self) -> str:
        return f"{self.at_s:5.1f} s: {self.kind} ({self.target}), {self.duration_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Round:
    """Faults, and after them a time without."""

    faults: list[Fault]
    quiet_s: float


EVERY: Final = "every service"


def _with_replicas(*services: str) -> tuple[str, ...]:
    """Each service and each of its replicas."""
    return services + tuple(f"{name}-{number}" for name in services for number in range(REPLICAS))


_CALLERS: Final = {
    "database": _with_replicas(*SERVICES),
    "Redis": (EVERY,),
    "gateway": ("payment",),
    "peers": _with_replicas("order"),
}
"""Whose connections to each side fail at once. Peers are the other services."""
CUT, HOLD, LOSE, DELAY = LINK_ACTIONS = ("cut", "hold", "lose replies of", "delay replies of")
LOSE_COMMIT: Final = "lose replies to COMMIT of"
KILL, PAUSE, RESTART, FLUSH, DEMOTE = "kill", "pause", "restart", "flush", "demote"
TERMINATE: Final = "terminate sessions of"
AWAY: Final = "no answer of"
STANDBY: Final = "PostgreSQL standby"
SET_BACK, SET_FORWARD = CLOCK_ACTIONS = ("set back", "set forward")
CLOCK: Final = "clock of a replica"


def _kinds() -> Iterator[Kind]:
    replicas = tuple(name for name in _with_replicas(*SERVICES) if name not in SERVICES)
    yield Kind(KILL, "replica", replicas, times=2)
    yield Kind(PAUSE, "replica", replicas, 2 * LEASE_S, 3 * LEASE_S, times=2)
    for side, callers in _CALLERS.items():
        for action in LINK_ACTIONS:
            yield Kind(action, side, callers)
    yield Kind(LOSE_COMMIT, "database", _CALLERS["database"])
    yield Kind(RESTART, "PostgreSQL", ("PostgreSQL",), 0.1, 0.5)
    yield Kind(TERMINATE, "PostgreSQL", SERVICES)
    # COMMITs wait for it: for longer than their callers do, or not.
    yield Kind(AWAY, STANDBY, ("all databases",), 1.0, 6.0)
    for action in CLOCK_ACTIONS:
        yield Kind(action, CLOCK, replicas, 1.5, 3.0)
    for action in (RESTART, FLUSH, PAUSE, DEMOTE):
        yield Kind(action, "Redis server", ("Redis",))
    for action in (RESTART, PAUSE):
        yield Kind(action, "gateway simulator", ("gateway",))


KINDS: Final = tuple(_kinds())


def rounds(seed: int, minutes: float) -> list[Round]:
    """The rounds of so many minutes, each of about ROUND_S or of all the time there is."""
    source = random.Random(f"schedule {seed}")
    count = max(1, round(minutes * 60 / ROUND_S))
    return [_round(source, minutes * 60 / count) for _ in range(count)]


def _round(source: random.Random, length_s: float) -> Round:
    faults = [
        Fault(
            source.uniform(0, FAULTY * length_s - kind.most_s),
            kind,
            source.choice(kind.targets),
            source.uniform(kind.least_s, kind.most_s),
        )
        for kind in KINDS
        for _ in range(kind.times)
    ]
    return Round(sorted(faults, key=lambda fault: fault.at_s), quiet_s=(1 - FAULTY) * length_s)
