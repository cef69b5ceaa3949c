"""Alerts under real faults: each fires while its fault lasts, and resolves afterwards.

A real stack under light load, a real Prometheus, and the rules with seconds for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final
from unittest import mock

import pytest
import pytest_asyncio

from deploy.local.plan import use_own_servers
from tally.balance.v1.balance_pb2 import ChargeBalanceRequest
from tally.order.v1 import order_pb2
from tally.type.v1.money_pb2 import Money
from tally_client import Tally, TallyError
from tests.faults.stack import FaultyStack
from tests.integration.local.test_runner import free_base_port
from tests.support.alert_rules import shortened
from tests.support.prometheus import PrometheusClient, needs_prometheus, running_prometheus

pytestmark = [needs_prometheus, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LIMIT_S: Final = 90.0
POLL_S: Final = 0.5
PAUSE_S: Final = 0.1
WITHOUT_FAULT: Final = {"TallyWatchdog"}
NOT_RUN_HERE: Final = {"TallyAuditNotRun"}
"""The audit has a process of its own, which this stack does not have."""


@dataclass
class Watched:
    """A stack, and the Prometheus that watches it."""

    stack: FaultyStack
    prometheus: PrometheusClient
    card: str = "good_"
    """The prefix of the payment keys of the load."""

    async def until(self, reached: Callable[[set[str]], bool]) -> set[str]:
        """Wait until the alerts that fire are such; those that fire then."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            firing = await asyncio.to_thread(self.prometheus.firing)
            if reached(firing) or time.monotonic() > deadline:
                return firing
            await asyncio.sleep(POLL_S)


def won(amount_minor: int) -> Money:
    return Money(currency_code="KRW", amount_minor=amount_minor)


async def keep_buying(watched: Watched) -> None:
    """Charge balances, place orders and pay them by balance and card, until cancelled."""
    plan = watched.stack.plan
    async with Tally(
        balance=plan.addresses("balance"),
        coupon=plan.addresses("coupon"),
        order=plan.addresses("order"),
        payment=plan.addresses("payment"),
    ) as tally:
        product = order_pb2.CreateProductRequest(
            name="Mug", price=won(1_000), stock=1_000_000, request_id="alerts:product"
        )
        product_id = (await tally.product.create_product(product)).product.product_id

        async def buy(number: int) -> None:
            name = f"alerts:{number}"
            with contextlib.suppress(TallyError):
                await tally.balance.charge_balance(
                    ChargeBalanceRequest(user_id=name, amount=won(500), request_id=f"{name}:c")
                )
                placed = await tally.order.create_order(
                    order_pb2.CreateOrderRequest(
                        user_id=name,
                        items=[order_pb2.OrderLine(product_id=product_id, quantity=1)],
                        request_id=f"{name}:o",
                    )
                )
                await tally.order.pay_order(
                    order_pb2.PayOrderRequest(
                        order_id=placed.order.order_id,
                        user_id=name,
                        balance_amount=won(500),
                        payment_key=f"{watched.card}{name}",
                        request_id=f"{name}:p",
                    ),
                    timeout_s=30,
                )

        async with asyncio.TaskGroup() as group:
            for number in count():
                group.create_task(buy(number))
                await asyncio.sleep(PAUSE_S)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    home = tmp_path_factory.mktemp("alerts")
    with mock.patch.dict(os.environ):
        use_own_servers(TALLY_ORDER_SAGA_ATTENTION_S="5", TALLY_ORDER_PAY_WITHIN_S="3")
        stack = FaultyStack(home / "data", free_base_port())
        with (
            stack,
            running_prometheus(
                stack.plan, home / "prometheus", rules=shortened(home / "rules")
            ) as prometheus,
        ):
            yield Watched(stack, prometheus)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(started: Watched) -> AsyncIterator[Watched]:
    buying = asyncio.create_task(keep_buying(started))
    yield started
    buying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await buying


# -- faults ---------------------------------------------------------------------------------


@asynccontextmanager
async def without_redis(watched: Watched) -> AsyncIterator[None]:
    watched.stack.kill_redis()
    yield
    watched.stack.redis.start()


@asynccontextmanager
async def without_gateway(watched: Watched) -> AsyncIterator[None]:
    watched.stack.gateway.kill()
    yield
    watched.stack.gateway.start()


@asynccontextmanager
async def replica_killed(watched: Watched) -> AsyncIterator[None]:
    child = watched.stack.replicas[watched.stack.plan.addresses("coupon")[1]]
    child.stop(signal.SIGKILL)
    yield
    watched.stack.restart_dead()


@asynccontextmanager
async def balance_paused(watched: Watched) -> AsyncIterator[None]:
    """While cards are declined: what orders took from balances cannot be given back."""
    watched.card = "decline_"
    await asyncio.sleep(1.0)
    watched.stack.signal("balance", signal.SIGSTOP)
    yield
    watched.stack.signal("balance", signal.SIGCONT)
    watched.card = "good_"


Fault = Callable[[Watched], AbstractAsyncContextManager[None]]


async def test_healthy_stack_fires_only_the_watchdog(watched: Watched) -> None:
    await watched.until(lambda firing: "TallyWatchdog" in firing)
    await asyncio.sleep(10.0)
    assert await watched.until(lambda _: True) - NOT_RUN_HERE == WITHOUT_FAULT


@pytest.mark.parametrize(
    ("fault", "alerts"),
    [
        pytest.param(without_redis, {"TallyRedisAbsent"}, id="Redis away"),
        pytest.param(replica_killed, {"TallyTargetDown"}, id="a replica killed"),
        pytest.param(
            without_gateway,
            {"TallyCircuitOpen", "TallyPaymentOutcomeUnknown"},
            id="the gateway away",
        ),
        pytest.param(
            balance_paused,
            {"TallyServiceDown", "TallyTargetDown", "TallySagaNeedsAttention"},
            id="a service hangs",
        ),
    ],
)
async def test_alerts_fire_and_resolve(watched: Watched, fault: Fault, alerts: set[str]) -> None:
    async with fault(watched):
        assert alerts - await watched.until(alerts.issubset) == set()
    assert alerts & await watched.until(alerts.isdisjoint) == set()
