"""Faults of rows: sessions keep them, or they are wrong. Each lasts as long as its block."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

from tally.balance.v1.balance_pb2 import (
    ChargeBalanceRequest,
    DeductBalanceRequest,
    ListLedgerEntriesRequest,
)
from tally.order.v1 import order_pb2
from tally_client import TallyError
from tests.faults.stack import beside
from tests.monitoring.watched import Watched
from tests.support.balances import won
from tests.support.coupons import campaign, queue

HELD_USER: Final = "alerts:held"
READERS: Final = 60
"""More than a replica has connections for reads."""
SLOW_COMMIT_S: Final = 1.2
CLOSE_A_CIRCLE: Final = """
DO $$ BEGIN
    -- Until the service waits for the record of the transaction that runs this.
    FOR n IN 1 .. 2000 LOOP
        EXIT WHEN EXISTS (SELECT FROM pg_locks
                           WHERE NOT granted AND transactionid = pg_current_xact_id()::xid);
        PERFORM pg_sleep(0.001);
    END LOOP;
    PERFORM FROM accounts WHERE user_id = 'alerts:held' FOR UPDATE;
END $$
"""


async def _every(interval_s: float, call: Callable[[int], Awaitable[object]]) -> None:
    """Make the call at even intervals, whatever becomes of it, until cancelled."""

    async def one(number: int) -> None:
        with contextlib.suppress(TallyError):
            await call(number)

    async with asyncio.TaskGroup() as group:
        for number in count():
            group.create_task(one(number))
            await asyncio.sleep(interval_s)


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
async def sagas_locked(watched: Watched) -> AsyncIterator[None]:
    """A migration has locked the table of sagas."""
    async with watched.superuser("order") as session, session.transaction():
        await session.execute("LOCK TABLE sagas IN ACCESS EXCLUSIVE MODE")
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


@asynccontextmanager
async def locked_in_another_order(watched: Watched) -> AsyncIterator[None]:
    """A script writes a user's record first and then locks the account: Tally does the reverse."""
    record = (
        "INSERT INTO answers (method, scope, request_id, state, digest)"
        f" VALUES ('DeductBalance', '{HELD_USER}', $1, 'CANCELLED', '')"
    )
    async with watched.client() as tally, watched.superuser("balance") as session:
        await tally.balance.charge_balance(
            ChargeBalanceRequest(user_id=HELD_USER, amount=won(1_000), request_id="held:c")
        )
        # Less than a service waits for a lock; the script itself is not ended.
        await session.execute("ALTER SYSTEM SET deadlock_timeout = '20ms'")
        await session.execute("SELECT pg_reload_conf()")
        await session.execute("SET deadlock_timeout = '1min'")

        async def deduct(request_id: str) -> None:
            request = DeductBalanceRequest(user_id=HELD_USER, amount=won(1), request_id=request_id)
            with contextlib.suppress(TallyError):
                await tally.balance.deduct_balance(request, timeout_s=10)

        async def run_script() -> None:
            for number in count():
                request_id = f"deadlock:{number}"
                async with asyncio.TaskGroup() as group:
                    script = session.transaction()
                    await script.start()
                    await session.execute(record, request_id)
                    group.create_task(deduct(request_id))
                    await session.execute(CLOSE_A_CIRCLE)
                    await script.rollback()
                await asyncio.sleep(0.5)

        try:
            async with beside(run_script()):
                yield
        finally:
            async with watched.superuser("balance") as other:
                await other.execute("ALTER SYSTEM RESET deadlock_timeout")
                await other.execute("SELECT pg_reload_conf()")


@asynccontextmanager
async def saga_not_readable(watched: Watched) -> AsyncIterator[None]:
    """A saga as no release has written it, which operators list and ask for."""
    async with watched.client() as tally, watched.superuser("order") as session:
        query = "SELECT saga_id::text, user_id, facts FROM sagas WHERE state = 'COMPLETED' LIMIT 1"
        saga_id, user_id, facts = await session.fetchrow(query)
        change = "UPDATE sagas SET facts = $2::jsonb WHERE saga_id = $1::uuid"
        await session.execute(change, saga_id, "[]")

        async def look(_number: int) -> None:
            await tally.saga.list_sagas(order_pb2.ListSagasRequest(user_id=user_id))
            await tally.saga.get_saga(order_pb2.GetSagaRequest(saga_id=saga_id))

        try:
            async with beside(_every(0.5, look)):
                yield
        finally:
            await session.execute(change, saga_id, facts)
