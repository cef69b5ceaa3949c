"""A locked row delays only its own commands; a stopping replica finishes what is in progress."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa

from common.db.database import Database
from common.db.statements import Connection
from common.money import Money
from deploy.local.gateway.simulator import GatewaySimulator
from payment_service.locking import advisory_keys
from payment_service.model.payment_command import ConfirmPayment
from payment_service.store import payment as store
from tally.payment.v1 import payment_pb2 as pb
from tests.support.payments import (
    Serve,
    cancel,
    confirm,
    held_at_gateway,
    insert_claim,
    key_of,
    only_payment,
)
from tests.support.time_limits import LONG_S


async def others(payment: Any, count: int = 30) -> None:
    """Confirm and cancel payments of other users."""
    await asyncio.gather(
        *(payment.ConfirmPayment(confirm(key_of(), user_id=f"u{n}")) for n in range(count))
    )
    await asyncio.gather(*(payment.CancelPayment(cancel(user_id=f"u{n}")) for n in range(count)))


async def test_a_locked_row_delays_only_its_own_commands(payment: Any, sessions: Database) -> None:
    key = key_of()
    await payment.ConfirmPayment(confirm(key))
    async with sessions.begin() as locking:
        await locking.execute(
            sa.text("SELECT FROM payments WHERE payment_key = :key FOR UPDATE"), {"key": key}
        )
        blocked = asyncio.ensure_future(payment.CancelPayment(cancel()))
        await others(payment)
        assert not blocked.done()
    assert (await blocked).payment.state == pb.Payment.STATE_CANCELLED


class _Undone(Exception):  # noqa: N818 - what is wanted
    """Rolls the transaction back."""


async def take_advisory_locks(connection: Connection, key: str) -> None:
    claim = ConfirmPayment("order-1", "ann", Money("KRW", 15_000), key, "c1", "")
    await store.lock_advisory(connection, advisory_keys(claim), wait_for_locks=True)


async def insert_key(connection: Connection, key: str) -> None:
    await insert_claim(connection, key, user_id="bob")


@pytest.mark.parametrize("block", [take_advisory_locks, insert_key])
async def test_a_blocked_claim_delays_only_its_own_key(
    payment: Any, sessions: Database, block: Callable[[Connection, str], Awaitable[None]]
) -> None:
    key = key_of()
    with suppress(_Undone):
        async with sessions.transactions.begin(sessions.waiting) as other:
            await block(other, key)
            blocked = asyncio.ensure_future(payment.ConfirmPayment(confirm(key)))
            await others(payment)
            assert not blocked.done()
            raise _Undone
    assert (await blocked).payment.state == pb.Payment.STATE_CONFIRMED


async def test_a_stopping_replica_finishes_its_call_to_the_gateway(
    serve: Serve, gateway: GatewaySimulator
) -> None:
    key = key_of()
    with held_at_gateway(key) as release:
        async with serve(1, gateway, grace_s=LONG_S, lease_s=600) as (one,):
            call = asyncio.ensure_future(one.ConfirmPayment(confirm(key)))
            await only_payment(one)
            call.cancel()
            await asyncio.wait({call})
            asyncio.get_running_loop().call_later(0.3, release.set)
    async with serve(1, gateway, resolve_interval_s=60) as (fresh,):
        # The lease lasts ten minutes: only the stopping replica can have recorded this.
        assert (await only_payment(fresh)).state == pb.Payment.STATE_CONFIRMED
        assert (await fresh.ConfirmPayment(confirm(key))).replayed
    assert gateway.charges()[key]["confirmCalls"] == 1
