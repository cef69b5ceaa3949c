"""The limit in memory, compared with a token bucket in exact fractions; its keys are bounded."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.gcra import KEYS_MAX, SECOND_NS, Gcra, Rate

pauses_ns = st.lists(st.integers(0, 3 * SECOND_NS), max_size=60)
rates = st.builds(Rate, st.sampled_from([0.5, 1.0, 3.0, 7.0, 20.0]), st.integers(1, 9))


class TokenBucket:
    """The reference: a bucket of ``burst`` tokens, filled with one in each interval."""

    def __init__(self, rate: Rate) -> None:
        self._interval_ns = rate.interval_ns
        self._burst = rate.burst
        self._tokens = Fraction(rate.burst)
        self._at_ns = 0

    def take(self, now_ns: int) -> bool:
        filled = self._tokens + Fraction(now_ns - self._at_ns, self._interval_ns)
        self._tokens, self._at_ns = min(Fraction(self._burst), filled), now_ns
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@given(rates, pauses_ns)
def test_it_admits_what_a_token_bucket_admits(rate: Rate, pauses: list[int]) -> None:
    gcra, bucket = Gcra(rate.interval_ns, rate.burst_ns), TokenBucket(rate)
    now_ns = 0
    for pause_ns in pauses:
        now_ns += pause_ns
        wait_ns = gcra.take("ann", now_ns)
        assert (wait_ns <= 0) == bucket.take(now_ns)
        if wait_ns > 0:
            # The wait is exact: not a nanosecond earlier, and then at once.
            assert gcra.wait_ns("ann", now_ns + wait_ns - 1) > 0
            assert gcra.wait_ns("ann", now_ns + wait_ns) <= 0


@given(rates, pauses_ns)
def test_what_is_given_back_can_be_taken_again(rate: Rate, pauses: list[int]) -> None:
    """As if it had never been: at the same time, and for all later arrivals."""
    gcra, without = (Gcra(rate.interval_ns, rate.burst_ns) for _ in range(2))
    now_ns = 0
    for number, pause_ns in enumerate(pauses):
        now_ns += pause_ns
        admitted = gcra.take("ann", now_ns) <= 0
        if number % 2:
            assert admitted == (without.take("ann", now_ns) <= 0)
        elif admitted:
            gcra.give_back("ann", now_ns)


def test_keys_have_limits_of_their_own() -> None:
    gcra = Gcra(SECOND_NS, 2 * SECOND_NS)
    assert [gcra.take("ann", 0) <= 0 for _ in range(3)] == [True, True, False]
    assert gcra.take("bob", 0) <= 0


def test_a_burst_of_less_than_one_admits_nothing() -> None:
    gcra = Gcra(SECOND_NS, SECOND_NS - 1)
    assert [gcra.take("ann", each * SECOND_NS) <= 0 for each in range(3)] == [False] * 3


def test_what_is_used_up_comes_back_one_by_one() -> None:
    gcra = Gcra(SECOND_NS, 3 * SECOND_NS)
    gcra.use_up("ann", 0, for_ns=5 * SECOND_NS)
    gcra.use_up("ann", 0)  # not earlier than that
    assert gcra.take("ann", 6 * SECOND_NS - 1) == 1
    assert gcra.take("ann", 6 * SECOND_NS) <= 0
    assert gcra.take("ann", 6 * SECOND_NS) == SECOND_NS


def test_memory_is_bounded_and_recent_keys_are_kept() -> None:
    gcra = Gcra(SECOND_NS, SECOND_NS)
    for number in range(100_000):
        assert gcra.take(f"user-{number}", 0) <= 0
        assert len(gcra) <= KEYS_MAX
    assert gcra.take("user-99999", 0) > 0, "the last ones are known"
    assert gcra.take("user-0", 0) <= 0, "the first ones begin anew"


def test_a_key_that_arrives_often_is_not_forgotten() -> None:
    gcra = Gcra(SECOND_NS, SECOND_NS, keys_max=100)
    assert gcra.take("ann", 0) <= 0
    for number in range(1_000):
        gcra.take(f"user-{number}", 0)
        if number % 40 == 0:
            gcra.use_up("ann", 0)
    assert gcra.take("ann", 0) > 0


@pytest.mark.parametrize("ask", [Gcra.take, Gcra.wait_ns])
def test_a_key_that_is_refused_again_and_again_is_not_forgotten(
    ask: Callable[[Gcra, str, int], int],
) -> None:
    gcra = Gcra(SECOND_NS, SECOND_NS, keys_max=100)
    assert gcra.take("ann", 0) <= 0
    for number in range(1_000):
        gcra.take(f"user-{number}", 0)
        assert len(gcra) <= 100
        if number % 40 == 0:
            assert ask(gcra, "ann", 0) > 0


@pytest.mark.parametrize(("rate", "text"), [(Rate(20, 200), "20:200"), (Rate(0.5, 1), "0.5:1")])
def test_a_rate_is_written_as_its_setting(rate: Rate, text: str) -> None:
    assert str(rate) == text
