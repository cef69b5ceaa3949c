"""Planted bugs of rate limits, and of the limit of open orders."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_STAGES: Final = "tests/unit/common/test_two_stage.py::"
_SHARED: Final = "tests/integration/common/test_shared_limits.py::"
_CALLS: Final = "tests/integration/balance/test_rate_limits.py::"
_USERS: Final = "tests/integration/identity/test_rate_limits.py::"
_ADDRESS: Final = "tests/unit/common/test_client_address.py::"
_ORDERS: Final = "tests/integration/order/test_open_orders.py::"

RATE_LIMITS: Final = (
    Mutant(
        "refusal-of-redis-ignored",
        "what the shared limit refuses is admitted",
        file="common/rate_limits/two_stage.py",
        old="        elif wait_ns > 0:\n",
        new="        elif wait_ns < 0:\n",
        tests=(f"{_STAGES}test_no_window_has_more_than_one_and_a_half_times_the_limit",),
    ),
    Mutant(
        "own-share-comes-back",
        "a replica admits calls alone while Redis decides about the same user",
        file="common/rate_limits/two_stage.py",
        old="        self._own.use_up(key, now_ns)\n        return self._ask(",
        new="        return self._ask(",
        tests=(f"{_STAGES}test_calls_that_are_spread_evenly_have_the_limit_in_the_long_run",),
    ),
    Mutant(
        "whole-limit-without-redis",
        "while Redis is away each replica admits the whole limit",
        file="common/rate_limits/two_stage.py",
        old="    interval_ns = replicas * rate.interval_ns\n",
        new="    interval_ns = rate.interval_ns\n",
        tests=(f"{_STAGES}test_while_redis_is_away_all_replicas_together_have_the_limit",),
    ),
    Mutant(
        "one-grant-for-all",
        "callers of one user that ask together are all admitted if one is",
        file="common/rate_limits/shared.py",
        old="            _answer(waiting[:granted], 0)\n",
        new="            _answer(waiting if granted else [], 0)\n",
        tests=(f"{_SHARED}test_replicas_together_admit_the_limit_and_their_own_shares",),
    ),
    Mutant(
        "replays-cost-writes",
        "a replay counts as a write",
        file="common/rpc/rate_limit.py",
        old="        if not response.replayed:\n",
        new="        if response.replayed:\n",
        tests=(f"{_CALLS}test_a_replay_counts_as_a_read",),
    ),
    Mutant(
        "operators-limited",
        "services and operators are limited as users are",
        file="common/rpc/rate_limit.py",
        old="            return caller.subject if caller.kind is Kind.USER else None\n",
        new="            return caller.subject\n",
        tests=(f"{_USERS}test_services_and_operators_are_not_limited",),
    ),
    Mutant(
        "forwarded-address-believed",
        "the first address in x-forwarded-for counts, which the client chooses",
        file="common/rpc/client_address.py",
        old="        for entry in reversed(listed):\n",
        new="        for entry in listed:\n",
        tests=(f"{_ADDRESS}test_a_call_counts_for_the_address_of_its_client",),
    ),
    Mutant(
        "one-open-order-more",
        "a user may have one open order more than the limit",
        file="order_service/use_cases/order_decider.py",
        old="open_orders >= most:\n",
        new="open_orders > most:\n",
        tests=(f"{_ORDERS}test_orders_that_are_paid_for_or_ended_do_not_count",),
    ),
)
