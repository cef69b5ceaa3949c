"""Limits in a real Valkey: what several replicas admit, one call for many, and its absence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from common.errors import Overloaded, RateLimited
from common.gcra import KEYS_MAX, Rate
from common.ids import new_id
from common.locking import redis as redis_calls
from common.locking.redis import open_redis, slot_of
from common.metrics import REGISTRY
from common.rate_limits import shared as shared_limits
from common.rate_limits.shared import SharedLimits
from common.rate_limits.two_stage import TwoStageLimit
from deploy.local.valkey import ValkeyServer
from tests.support.redis_stand_in import OK, RedisStandIn

REPLICAS = 4
ONCE = Rate(0.001, 400)
"""Nothing comes back while a test runs: its counts are exact."""
OWN = ONCE.burst // (2 * REPLICAS)
SHARE = ONCE.burst // REPLICAS


@asynccontextmanager
async def replicas(url: str, rate: Rate = ONCE) -> AsyncIterator[list[TwoStageLimit]]:
    """Replicas with a connection each."""
    name = f"{new_id()}:"
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(REPLICAS):
            redis = open_redis(url)
            stack.push_async_callback(redis.aclose)
            shared = SharedLimits(redis)
            stack.push_async_callback(shared.close)
            opened.append(TwoStageLimit(name, rate, replicas=REPLICAS, shared=shared))
        yield opened


async def admits(limit: TwoStageLimit, user: str = "ann") -> bool:
    try:
        waits = limit.take(user)
        if waits is not None:
            await waits
    except RateLimited as refusal:
        assert refusal.retry_after_s is not None
        assert refusal.retry_after_s > 0
        return False
    return True


async def admitted(limits: Sequence[TwoStageLimit], calls: int) -> int:
    """How many of these calls, which are made at once and in turns, are admitted."""
    waiting = [admits(limits[number % len(limits)]) for number in range(calls)]
    return sum(await asyncio.gather(*waiting))


def decisions(outcome: str) -> float:
    return REGISTRY.get_sample_value("tally_rate_limit_decisions_total", {"outcome": outcome}) or 0


def script_calls() -> float:
    return REGISTRY.get_sample_value("tally_rate_limit_batch_calls_count") or 0


@pytest.fixture(autouse=True)
def long_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not look like an absent Redis."""
    monkeypatch.setattr(redis_calls, "TIMEOUT_S", 5.0)


# -- the bound -------------------------------------------------------------------------------------


async def test_replicas_together_admit_the_limit_and_their_own_shares(
    valkey_server: ValkeyServer,
) -> None:
    async with replicas(valkey_server.url) as limits:
        assert await admitted(limits, 4 * ONCE.burst) == ONCE.burst + REPLICAS * OWN
        assert await admitted(limits, 100) == 0


async def test_one_replica_that_gets_all_calls_admits_no_more_than_the_limit_and_its_share(
    valkey_server: ValkeyServer,
) -> None:
    async with replicas(valkey_server.url) as limits:
        assert await admitted(limits[:1], 4 * ONCE.burst) == ONCE.burst + OWN


async def test_without_the_shared_limit_each_replica_admits_all_of_it(
    valkey_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: each replica has the limit, and knows nothing of the others."""
    monkeypatch.setattr(shared_limits, "_PREFIX", "")
    async with AsyncExitStack() as stack:
        alone = []
        for _ in range(REPLICAS):
            alone += (await stack.enter_async_context(replicas(valkey_server.url)))[:1]
        assert await admitted(alone, 8 * ONCE.burst) == REPLICAS * (ONCE.burst + OWN)


async def test_in_a_window_of_time_the_bound_holds(
    valkey_server: ValkeyServer, redis: Redis
) -> None:
    """By Redis' own clock, read around the window."""
    rate = Rate(200, 20)

    async def now_s() -> float:
        seconds, microseconds = await redis.time()
        return float(seconds) + float(microseconds) / 1e6

    async with replicas(valkey_server.url, rate) as limits:
        begun_s = await now_s()
        found = sum([await admitted(limits, 40) for _ in range(60)])
        window_s = await now_s() - begun_s
    limit = rate.burst + rate.per_s * window_s
    assert found <= 1.5 * limit + 1
    assert found > rate.burst, "some came back"


async def test_users_and_methods_have_limits_of_their_own(valkey_server: ValkeyServer) -> None:
    async with replicas(valkey_server.url) as limits, replicas(valkey_server.url) as others:
        assert await admitted(limits, 2 * ONCE.burst) == ONCE.burst + REPLICAS * OWN
        assert await admits(limits[0], "bob")
        assert await admits(others[0])


# -- one call for many -----------------------------------------------------------------------------


async def test_callers_of_a_moment_share_a_call(valkey_server: ValkeyServer) -> None:
    async with replicas(valkey_server.url) as limits:
        assert await admitted(limits[:1], OWN) == OWN
        before = script_calls()
        assert await admitted(limits[:1], 200) == 200
        assert script_calls() - before == 1
        waiting = [admits(limits[0], f"user-{number}") for number in range(300) for _ in range(60)]
        assert sum(await asyncio.gather(*waiting)) == 300 * 60
        # 300 users, 256 of them in a call.
        assert script_calls() - before <= 4


async def test_below_the_share_no_call_is_made(valkey_server: ValkeyServer) -> None:
    async with replicas(valkey_server.url) as limits:
        before = script_calls()
        for number in range(2 * KEYS_MAX):
            assert limits[0].take(f"user-{number}") is None
        assert script_calls() == before


async def test_callers_that_go_away_cost_the_others_nothing(valkey_server: ValkeyServer) -> None:
    async with replicas(valkey_server.url) as limits:
        for _ in range(5):
            calls = [asyncio.create_task(admits(limits[0])) for _ in range(OWN + 40)]
            await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert answers[1::2] == [True] * len(answers[1::2])
        # Who went away before the call was sent is not counted: 20 stayed in the first round, whose
        # other calls were below the share, and 45 in each of the others.
        assert await admitted(limits[:1], 4 * ONCE.burst) == ONCE.burst - (20 + 4 * 45)


async def test_too_many_callers_that_wait_are_refused(
    valkey_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "WAITING_MAX", 30)
    async with open_redis(valkey_server.url) as redis:
        limits = SharedLimits(redis)
        calls = [limits.take(f"{new_id()}:ann", ONCE) for _ in range(50)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await limits.close()
    assert answers[:30] == [0] * 30
    assert {type(each) for each in answers[30:]} == {Overloaded}


async def test_what_is_given_back_can_be_taken_again(valkey_server: ValkeyServer) -> None:
    async with replicas(valkey_server.url) as limits:
        assert await admitted(limits, 4 * ONCE.burst) == ONCE.burst + REPLICAS * OWN
        for limit in limits:
            for _ in range(3):
                limit.give_back("ann")
    async with open_redis(valkey_server.url) as redis:
        limits_of = SharedLimits(redis)
        name = f"{limits[0]._name}ann"
        answers = [await limits_of.take(name, ONCE) for _ in range(13)]
        await limits_of.close()
    assert [answer == 0 for answer in answers] == [True] * 12 + [False]


# -- state in Redis --------------------------------------------------------------------------------


async def test_a_key_expires_when_nothing_of_it_is_used(
    valkey_server: ValkeyServer, redis: Redis
) -> None:
    rate = Rate(100, 10)
    limits, name = SharedLimits(redis), new_id()
    assert await limits.take(name, rate) == 0
    assert 0 <= await redis.pttl(f"{{rate}}:{name}") <= rate.burst_ns / 1e6
    await limits.close()


async def test_a_clock_that_is_set_back_costs_a_burst_at_most(
    valkey_server: ValkeyServer, redis: Redis
) -> None:
    """As if the key had been written a day later."""
    rate = Rate(10, 5)
    limits, name = SharedLimits(redis), new_id()
    seconds, _ = await redis.time()
    await redis.set(f"{{rate}}:{name}", (int(seconds) + 86_400) * 1_000_000)
    waits_ns = await limits.take(name, rate)
    assert waits_ns is not None
    assert 0 < waits_ns <= rate.interval_ns
    assert await redis.pttl(f"{{rate}}:{name}") <= rate.burst_ns / 1e6
    await limits.close()


def test_in_a_cluster_all_limits_are_in_one_slot() -> None:
    prefix = shared_limits._PREFIX
    assert slot_of(f"{prefix}a:{{b}}ann") == slot_of(f"{prefix}c:bob")


# -- Redis away ------------------------------------------------------------------------------------


async def test_redis_that_is_killed_in_the_middle_leaves_each_replica_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_calls, "OPEN_S", 0.05)
    with ValkeyServer(tmp_path) as server:
        async with replicas(server.url) as limits:
            assert await admitted(limits, REPLICAS * (OWN + 10)) == REPLICAS * (OWN + 10)
            calls = asyncio.create_task(admitted(limits, 4 * ONCE.burst))
            with capture_logs() as logged:
                server.stop()
                before = decisions("absent")
                found = await calls
                for _ in range(4):  # the circuit opens, and is tried again
                    found += await admitted(limits, 4 * ONCE.burst)
                    await asyncio.sleep(0.06)
            # What Redis may have admitted before it was killed, and then the shares.
            assert found <= ONCE.burst + ONCE.burst
            assert found >= REPLICAS * SHARE
            assert decisions("absent") > before
            events = {line["event"] for line in logged}
            assert {"redis_limit_absent", "circuit_opened"} <= events
            server.start()
            async with asyncio.timeout(30):
                before = decisions("admitted")
                while decisions("admitted") == before:
                    await admitted(limits, 4)
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "reply",
    [OK, b"*0\r\n", b"*2\r\n:2\r\n:0\r\n", b"*2\r\n:-1\r\n:0\r\n", b"*2\r\n$1\r\n1\r\n:0\r\n"],
)
async def test_a_reply_of_another_form_admits_nobody(reply: bytes) -> None:
    async with RedisStandIn.replying(reply) as server, open_redis(server.url) as redis:
        limits = SharedLimits(redis)
        assert await limits.take("ann", ONCE) is None
        await limits.close()


async def test_a_defect_of_the_task_leaves_nobody_waiting(
    valkey_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: SharedLimits, batch: dict[str, Any]) -> None:
        raise ZeroDivisionError

    async with open_redis(valkey_server.url) as redis:
        limits = SharedLimits(redis)
        with monkeypatch.context() as patch:
            patch.setattr(SharedLimits, "_send", fail)
            waiting = limits.take("ann", ONCE)
            assert await waiting is None
        assert await limits.take(new_id(), ONCE) == 0
        await limits.close()
