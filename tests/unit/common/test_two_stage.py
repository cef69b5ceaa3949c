"""What several replicas admit together, whatever the calls: never more than the stated bound."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import RateLimited
from common.gcra import SECOND_NS, Gcra, Rate
from common.rate_limits.shared import SharedLimits
from common.rate_limits.two_stage import TwoStageLimit

RATE = Rate(10, 40)
REPLICAS = 4


@dataclass
class Clock:
    now_ns: int = 0

    def __call__(self) -> int:
        return self.now_ns


class SharedInMemory:
    """Answers as Redis does, at once."""

    def __init__(self, clock: Clock) -> None:
        self.absent = False
        self.asked = 0
        self._clock = clock
        self._limit = Gcra(RATE.interval_ns, RATE.burst_ns)

    async def take(self, key: str, rate: Rate) -> int | None:
        self.asked += 1
        return None if self.absent else max(0, self._limit.take(key, self._clock()))

    def give_back(self, key: str, rate: Rate) -> None:
        self._limit.give_back(key, self._clock())


class Service:
    """Some replicas that limit one user."""

    def __init__(self, *, replicas: int = REPLICAS, setting: int = REPLICAS) -> None:
        self.clock = Clock()
        self.shared = SharedInMemory(self.clock)
        self.replicas = [
            TwoStageLimit(
                "Get:",
                RATE,
                replicas=setting,
                shared=cast(SharedLimits, self.shared),
                clock_ns=self.clock,
            )
            for _ in range(replicas)
        ]

    def admits(self, replica: int) -> bool:
        """Whether a call to this replica is admitted now."""
        try:
            waits: Any = self.replicas[replica].take("ann")
            if waits is not None:
                with pytest.raises(StopIteration):
                    waits.send(None)
        except RateLimited:
            return False
        return True


def check_every_window(times_ns: Sequence[int], excess: Fraction) -> None:
    """In no window more than (1 + excess) times the limit was admitted at these times."""
    for first, begin_ns in enumerate(times_ns):
        for last in range(first, len(times_ns)):
            seconds = Fraction(times_ns[last] - begin_ns, SECOND_NS)
            limit = RATE.burst + Fraction(RATE.per_s) * seconds
            assert last - first + 1 <= limit * (1 + excess)


def admitted_times(service: Service, calls: Sequence[tuple[int, int]]) -> list[int]:
    times_ns = []
    for pause_ns, replica in calls:
        service.clock.now_ns += pause_ns
        if service.admits(replica % len(service.replicas)):
            times_ns.append(service.clock.now_ns)
    return times_ns


calls = st.lists(
    st.tuples(st.integers(0, SECOND_NS // 4), st.integers(0, REPLICAS - 1)), max_size=150
)
FLOOD = [(0, number) for number in range(150)]
SLOW_EVERYWHERE = [(SECOND_NS // 20, number) for number in range(150)]


@given(calls)
@example(FLOOD)
@example(SLOW_EVERYWHERE)
def test_no_window_has_more_than_one_and_a_half_times_the_limit(
    calls: list[tuple[int, int]],
) -> None:
    check_every_window(admitted_times(Service(), calls), Fraction(1, 2))


@given(calls)
@example(FLOOD)
def test_with_more_replicas_than_the_setting_the_bound_grows_as_stated(
    calls: list[tuple[int, int]],
) -> None:
    check_every_window(admitted_times(Service(setting=2), calls), Fraction(REPLICAS, 2 * 2))


def test_a_flood_reaches_the_bound_so_it_cannot_be_stated_lower() -> None:
    assert len(admitted_times(Service(), FLOOD)) == RATE.burst * 3 // 2


def test_without_the_shared_stage_the_bound_is_broken() -> None:
    """The control: each replica knows only its own calls."""
    service = Service()

    async def admit(key: str, rate: Rate) -> int:
        return 0

    service.shared.take = admit  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        check_every_window(admitted_times(service, FLOOD), Fraction(1, 2))


@pytest.mark.parametrize("per_s", [14, 50])
def test_calls_that_are_spread_evenly_have_the_limit_in_the_long_run(per_s: int) -> None:
    """Each replica sees more than its share, so that Redis decides about all of them.

    Of 14 a second, the shares could admit 5, and Redis the rest without a refusal.
    """
    service = Service()
    calls = [(SECOND_NS // per_s, number) for number in range(3_000)]
    admitted = len(admitted_times(service, calls))
    seconds = 3_000 / per_s
    assert RATE.per_s * seconds <= admitted <= RATE.per_s * seconds + RATE.burst * 3 / 2


def test_below_the_share_nobody_is_asked() -> None:
    service = Service()
    interval_ns = 2 * REPLICAS * RATE.interval_ns
    assert len(admitted_times(service, [(interval_ns, 0)] * 100)) == 100
    assert service.shared.asked == 0


def test_a_refusal_holds_without_asking_again_and_until_then_only() -> None:
    service = Service()
    while service.admits(0):
        pass
    asked = service.shared.asked
    for _ in range(100):
        with pytest.raises(RateLimited) as refused:
            service.replicas[0].take("ann")
    assert service.shared.asked == asked
    assert refused.value.retry_after_s is not None
    service.clock.now_ns += round(refused.value.retry_after_s * SECOND_NS)
    assert service.admits(0)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_while_redis_is_away_all_replicas_together_have_the_limit(replicas: int) -> None:
    service = Service(replicas=replicas, setting=replicas)
    service.shared.absent = True
    flood = [(0, number) for number in range(40 * RATE.burst)]
    assert len(admitted_times(service, flood)) == RATE.burst
    service.clock.now_ns += SECOND_NS
    assert len(admitted_times(service, flood)) == pytest.approx(RATE.per_s, abs=replicas)


@pytest.mark.parametrize(
    ("rate", "replicas", "at_once"),
    [
        (Rate(2, 20), 8, 5),  # PayOrder in the production overlay
        (Rate(2, 20), 4, 5),
        (Rate(20, 200), 8, 25),
        (Rate(2, 3), 8, 3),
        (Rate(2, 3), 1, 3),
    ],
)
def test_while_redis_is_away_a_replica_admits_a_few_duplicates_at_once(
    rate: Rate, replicas: int, at_once: int
) -> None:
    clock = Clock()
    limit = TwoStageLimit("Pay:", rate, replicas=replicas, shared=None, clock_ns=clock)

    def admitted() -> int:
        count = 0
        with suppress(RateLimited):
            while True:
                limit.take("ann")
                count += 1
        return count

    assert admitted() == at_once
    clock.now_ns += 100 * replicas * rate.interval_ns
    assert admitted() == at_once
    clock.now_ns += replicas * rate.interval_ns
    assert admitted() == 1, "the rate is the share's"


def test_when_redis_fails_in_the_middle_of_a_call_the_share_decides() -> None:
    service = Service()
    while service.admits(0):
        pass
    asked = service.shared.asked

    async def fail(key: str, rate: Rate) -> None:
        service.shared.asked += 1

    service.shared.take = fail  # type: ignore[method-assign]
    admitted = sum(service.admits(1) for _ in range(100))
    own, share = RATE.burst // (2 * REPLICAS), RATE.burst // REPLICAS
    assert admitted == own + share
    assert service.shared.asked > asked


def test_one_replica_alone_has_the_whole_limit_and_asks_nobody() -> None:
    service = Service(replicas=1, setting=1)
    assert len(admitted_times(service, FLOOD)) == RATE.burst
    assert service.shared.asked == 0


OWN, SHARE = RATE.burst // (2 * REPLICAS), RATE.burst // REPLICAS


@pytest.mark.parametrize(
    ("absent", "used", "left"),
    [(False, 0, OWN + RATE.burst), (False, OWN, RATE.burst), (True, 0, SHARE)],
    ids=["own", "shared", "absent"],
)
def test_what_is_given_back_was_not_counted(*, absent: bool, used: int, left: int) -> None:
    service = Service()
    service.shared.absent = absent
    assert all(service.admits(0) for _ in range(used))
    for _ in range(10 * RATE.burst):
        assert service.admits(0)
        service.replicas[0].give_back("ann")
    assert sum(service.admits(0) for _ in range(10 * RATE.burst)) == left


def test_users_do_not_share_a_limit() -> None:
    service = Service()
    while service.admits(0):
        pass
    assert service.replicas[0].take("bob") is None


def test_the_first_stage_comes_back_with_time() -> None:
    service = Service()
    while service.admits(0):
        pass
    service.clock.now_ns += RATE.burst_ns + 2 * REPLICAS * RATE.interval_ns
    asked = service.shared.asked
    assert service.admits(0)
    assert service.shared.asked == asked
