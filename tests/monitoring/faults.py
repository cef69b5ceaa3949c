"""Faults of a watched stack. Each lasts as long as its block."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Final

from tally.balance.v1.balance_pb2 import (
    ChargeBalanceRequest,
    DeductBalanceRequest,
    ListLedgerEntriesRequest,
)
from tally.order.v1 import order_pb2
from tally_client import SagaNotRetryable, Tally, TallyError
from tests.faults.stack import beside
from tests.monitoring.watched import POLL_S, Watched
from tests.support.balances import won
from tests.support.coupons import campaign, queue

Fault = Callable[[Watched], AbstractAsyncContextManager[None]]

HELD_USER: Final = "alerts:held"
READERS: Final = 60
"""More than a replica has connections for reads."""
SLOW_COMMIT_S: Final = 1.2


async def _every(interval_s: float, call: Callable[[int], Awaitable[object]]) -> None:
    """Make the call at even intervals, whatever becomes of it, until cancelled."""

    async def one(number: int) -> None:
        with contextlib.suppress(TallyError):
            await call(number)

    async with asyncio.TaskGroup() as group:
        for number in count():
            group.create_task(one(number))
            await asyncio.sleep(interval_s)


# -- processes ------------------------------------------------------------------------------


@asynccontextmanager
async def without_redis(watched: Watched) -> AsyncIterator[None]:
    watched.stack.kill_redis()
    yield
    watched.stack.redis.start()


@asynccontextmanager
async def without_gateway(watched: Watched) -> AsyncIterator[None]:
    """It dies while it charges cards: nobody knows whether it did."""
    watched.card = "slow_"
    await asyncio.sleep(2.0)
    watched.stack.gateway.kill()
    watched.card = "good_"
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


# -- sessions that nobody knows -------------------------------------------------------------


@asynccontextmanager
async def account_held(watched: Watched) -> AsyncIterator[None]:
    """A forgotten session keeps an account's row, whose user goes on deducting."""
    async with watched.client() as tally, watched.superuser("balance") as session:
        await tally.balance.charge_balance(
            ChargeBalanceRequest(user_id=HELD_USER, amount=won(1_000), request_id="held:c")
        )

        def deduct(number: int) -> Awaitable[object]:
            request = DeductBalanceRequest(
                user_id=HELD_USER, amount=won(1), request_id=f"held:{number}"
            )
            return tally.balance.deduct_balance(request, timeout_s=30)

        async with session.transaction():
            await session.execute("SELECT FROM accounts WHERE user_id = $1 FOR UPDATE", HELD_USER)
            async with beside(_every(0.3, deduct)):
                yield


@asynccontextmanager
async def commits_slow(watched: Watched) -> AsyncIterator[None]:
    """COMMITs wait for a standby that is away most of the time."""
    async with watched.superuser("balance") as session:

        async def wait_for(standby: str) -> None:
            await session.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
            await session.execute("SELECT pg_reload_conf()")

        async def hesitate() -> None:
            while True:
                await wait_for("away")
                await asyncio.sleep(SLOW_COMMIT_S)
                await wait_for("")
                await asyncio.sleep(0.2)

        try:
            async with beside(hesitate()):
                yield
        finally:
            await wait_for("")


@asynccontextmanager
async def ledger_locked(watched: Watched) -> AsyncIterator[None]:
    """A migration has locked a table that many read."""
    async with watched.client() as tally, watched.superuser("balance") as session:
        await tally.balance.charge_balance(
            ChargeBalanceRequest(user_id=HELD_USER, amount=won(1_000), request_id="held:c")
        )
        request = ListLedgerEntriesRequest(user_id=HELD_USER, currency_code="KRW")

        async def read() -> None:
            while True:
                with contextlib.suppress(TallyError):
                    await tally.balance.list_ledger_entries(request, timeout_s=5)

        async def read_all() -> None:
            await asyncio.gather(*(read() for _ in range(READERS)))

        async with session.transaction():
            await session.execute("LOCK TABLE ledger_entries IN ACCESS EXCLUSIVE MODE")
            async with beside(read_all()):
                yield


@asynccontextmanager
async def campaign_held(watched: Watched) -> AsyncIterator[None]:
    """A forgotten session keeps the row of a campaign for whose coupons users queue."""
    async with watched.client() as tally, watched.superuser("coupon") as session:
        made = await tally.coupon.create_campaign(campaign("alerts", queue_only=True))
        campaign_id = made.campaign.campaign_id
        async with session.transaction():
            held = "SELECT FROM campaigns WHERE campaign_id = $1 FOR UPDATE"
            await session.execute(held, campaign_id)
            await tally.coupon.queue_coupon(queue(campaign_id, HELD_USER))
            yield


# -- books ----------------------------------------------------------------------------------


@asynccontextmanager
async def account_changed(watched: Watched) -> AsyncIterator[None]:
    """Somebody takes money from a user by SQL. An audit follows, and one after it is put back."""
    name = "alerts:changed"
    change = "UPDATE accounts SET available_minor = available_minor - $2 WHERE user_id = $1"
    async with watched.client() as tally, watched.superuser("balance") as session:
        await tally.balance.charge_balance(
            ChargeBalanceRequest(user_id=name, amount=won(100), request_id=f"{name}:c")
        )
        await session.execute(change, name, 1)
        watched.audit_all()
        yield
        await session.execute(change, name, -1)
        watched.audit_all()


@asynccontextmanager
async def deduction_stands(watched: Watched) -> AsyncIterator[None]:
    """A person lets a deduction stand whose payment came to no end while the gateway was away."""
    async with watched.client() as tally:
        async with without_gateway(watched):
            saga_id = await _let_one_stand(tally)
        await _until_resolved(tally, saga_id)
        watched.audit_all()
        yield
        # A case is new in one verdict.
        watched.audit_all()


async def _until_resolved(tally: Tally, saga_id: str) -> None:
    request = order_pb2.ListSagasRequest(state=order_pb2.Saga.STATE_RESOLVED)
    while True:
        if any(saga.saga_id == saga_id for saga in (await tally.saga.list_sagas(request)).sagas):
            return
        await asyncio.sleep(POLL_S)


async def _let_one_stand(tally: Tally) -> str:
    """Resolve the first saga that needs attention, but for its deduction; returns its id."""
    request = order_pb2.ListSagasRequest(state=order_pb2.Saga.STATE_NEEDS_ATTENTION)
    stands = order_pb2.StandingEffect(step="deduct_balance", reason="paid at the counter")
    while True:
        for saga in (await tally.saga.list_sagas(request)).sagas:
            # It may have ended meanwhile: then the next one.
            with contextlib.suppress(SagaNotRetryable):
                await tally.saga.resolve_saga(
                    order_pb2.ResolveSagaRequest(
                        saga_id=saga.saga_id,
                        reason="by hand",
                        request_id=saga.saga_id,
                        standing=[stands],
                    )
                )
                return saga.saga_id
        await asyncio.sleep(POLL_S)
