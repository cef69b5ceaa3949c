"""Rate limits without identity: by the user_id of each call, of each item, and of no saga."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from balance_service.settings import BalanceSettings
from balance_service.wiring import build
from common.gcra import Rate
from common.ids import new_id
from common.metrics import REGISTRY
from common.rpc.pauses import CALLER
from deploy.local.postgres_roles import ServiceUrls
from tally.balance.v1 import balance_pb2 as pb
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tests.support.balances import available, batch, charge, deduct
from tests.support.payments import until
from tests.support.refusals import outcome, reason_of, refused
from tests.support.replicas import channel, replicas

ONCE = {"rate_limits": True, "rate_limit_replicas": 1, "rate_limit_writes": Rate(0.001, 5)}
"""Five calls of a user to a method, and no more while a test runs."""

Open = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def opened(balance_database: ServiceUrls, redis_url: str) -> Open:
    """Opens replicas with these settings, and a client of them in turns."""

    @asynccontextmanager
    async def open_balance(count: int = 1, **settings: Any) -> AsyncIterator[BalanceServiceStub]:
        urls = {"database_url": balance_database.runtime, "redis_url": redis_url}
        async with (
            replicas(count, BalanceSettings, build, **urls, **settings) as addresses,
            channel(*addresses) as connected,
        ):
            yield BalanceServiceStub(connected)

    return open_balance


async def test_a_user_above_the_limit_is_refused_and_nothing_is_written(opened: Open) -> None:
    async with opened(**ONCE) as balance:
        for number in range(5):
            await balance.ChargeBalance(charge("ann", 1, f"c{number}"))
        with refused("RATE_LIMITED") as ended:
            await balance.ChargeBalance(charge("ann", 1, "c5"))
        assert ended.refusal.retry_after_s == pytest.approx(1_000, rel=0.2)
        # Another method, and another user, have limits of their own.
        await balance.DeductBalance(deduct("ann", 1, "d0"))
        await balance.ChargeBalance(charge("bob", 1, "c5"))
        assert await available(balance, "ann") == 4


async def test_the_limit_stands_before_validation_and_behind_the_size(opened: Open) -> None:
    async with opened(**ONCE) as balance:
        for _ in range(5):
            with refused("INVALID_FIELD", field="amount"):
                await balance.ChargeBalance(pb.ChargeBalanceRequest(user_id="ann"))
        with refused("RATE_LIMITED"):
            await balance.ChargeBalance(pb.ChargeBalanceRequest(user_id="ann"))
        with refused("INVALID_FIELD", field="request"):
            await balance.ChargeBalance(charge("ann", 1, "x" * 70_000))


@pytest.mark.parametrize("user_id", ["", "{rate}", "x" * 65, "a b", "é"])
async def test_a_user_id_of_another_form_is_not_counted(opened: Open, user_id: str) -> None:
    """It is refused for its form, every time, and makes no key."""
    async with opened(**ONCE) as balance:
        for _ in range(7):
            with refused("INVALID_FIELD", field="user_id"):
                await balance.ChargeBalance(charge(user_id, 1, "c0"))


async def test_a_replay_counts_as_a_read(opened: Open) -> None:
    async with opened(**ONCE, rate_limit_reads=Rate(0.001, 10)) as balance:
        await balance.ChargeBalance(charge("ann", 1, "c0"))
        for _ in range(10):
            assert (await balance.ChargeBalance(charge("ann", 1, "c0"))).replayed
        for number in range(1, 5):
            await balance.ChargeBalance(charge("ann", 1, f"c{number}"))
        with refused("RATE_LIMITED"):
            await balance.ChargeBalance(charge("ann", 1, "c5"))


async def test_replays_above_the_limit_of_reads_count_as_writes(opened: Open) -> None:
    async with opened(**ONCE, rate_limit_reads=Rate(0.001, 10)) as balance:
        await balance.ChargeBalance(charge("ann", 1, "c0"))
        ends = [await outcome(balance.ChargeBalance(charge("ann", 1, "c0"))) for _ in range(20)]
        assert Counter(end if isinstance(end, str) else "" for end in ends) == {
            "": 10 + 4,
            "RATE_LIMITED": 6,
        }


async def test_items_are_counted_one_by_one_and_refused_alone(opened: Open) -> None:
    async with opened(**ONCE, rate_limit_reads=Rate(0.001, 10)) as balance:
        items = [charge("ann", 1, f"a{number}") for number in range(8)]
        mixed = [each for pair in zip(items, _others(8), strict=True) for each in pair]
        results = (await balance.BatchWrite(batch(*mixed))).results
        reasons = [reason_of(result.error) for result in results]
        assert reasons[::2] == [""] * 5 + ["RATE_LIMITED"] * 3
        assert reasons[1::2] == [""] * 8
        assert await available(balance, "ann") == 5


async def test_items_that_are_replayed_count_as_reads(opened: Open) -> None:
    async with opened(**ONCE, rate_limit_reads=Rate(0.001, 10)) as balance:
        for _ in range(6):
            results = (await balance.BatchWrite(batch(charge("ann", 1, "a0")))).results
            assert [reason_of(result.error) for result in results] == [""]


async def test_calls_of_sagas_are_not_counted(opened: Open) -> None:
    """Where identity is off, they are known by their metadata."""
    async with opened(**ONCE) as balance:
        await balance.ChargeBalance(charge("ann", 100, "c0"))
        for _ in range(10):
            step = deduct("ann", 1, f"{new_id()}:deduct_balance")
            await balance.DeductBalance(step, metadata=CALLER)
        items = [deduct("ann", 1, f"b{number}") for number in range(10)]
        results = (await balance.BatchWrite(batch(*items), metadata=CALLER)).results
        assert [reason_of(result.error) for result in results] == [""] * 10
        assert await available(balance, "ann") == 80


async def test_limits_are_off_by_default(opened: Open) -> None:
    limits = {**ONCE, "rate_limits": None}
    async with opened(**limits) as balance:
        for number in range(7):
            await balance.ChargeBalance(charge("ann", 1, f"c{number}"))


async def test_a_limit_that_is_empty_limits_nothing(opened: Open) -> None:
    limits = {**ONCE, "rate_limit_writes": None}
    async with opened(**limits) as balance:
        for number in range(7):
            await balance.ChargeBalance(charge("ann", 1, f"c{number}"))


async def test_a_hundred_deductions_of_one_user_at_once_pass_by_default(opened: Open) -> None:
    """On several replicas, which share the limit in Redis."""
    async with opened(2, rate_limits=True) as balance:
        await balance.ChargeBalance(charge("ann", 100_000, "c"))
        calls = [balance.DeductBalance(deduct("ann", 500, f"d{each}")) for each in range(100)]
        ends = await asyncio.gather(*map(outcome, calls))
        assert [end for end in ends if isinstance(end, str)] == []
        assert await available(balance, "ann") == 50_000


@pytest.mark.usefixtures("slow_machine")
async def test_replicas_share_the_limit(opened: Open, redis_url: str) -> None:
    """Own shares of 10 each, and 40 together; without Redis, half of 40 each."""
    limit = {"rate_limit_writes": Rate(0.001, 40), "rate_limit_replicas": 2}
    async with opened(2, rate_limits=True, **limit) as balance:
        calls = [balance.ChargeBalance(charge("ann", 1, f"c{each}")) for each in range(200)]
        ends = Counter(
            end if isinstance(end, str) else ""
            for end in await asyncio.gather(*map(outcome, calls))
        )
        most = 40 + 2 * 10 if redis_url else 40
        assert ends == {"": most, "RATE_LIMITED": 200 - most}
        assert await available(balance, "ann") == most


async def test_a_refused_call_is_in_the_counter_of_calls(opened: Open) -> None:
    async with opened(**ONCE) as balance:
        before = await _refused_calls()
        for number in range(6):
            await outcome(balance.ChargeBalance(charge("ann", 1, f"c{number}")))
        await until(_refused_calls, lambda now: now == before + 1)


async def _refused_calls() -> float:
    labels = {
        "method": "/tally.balance.v1.BalanceService/ChargeBalance",
        "code": "RESOURCE_EXHAUSTED",
        "reason": "RATE_LIMITED",
    }
    return REGISTRY.get_sample_value("tally_grpc_calls_total", labels) or 0.0


def _others(count: int) -> list[pb.ChargeBalanceRequest]:
    return [charge(f"user-{number}", 1, "c") for number in range(count)]
