"""Unknown outcomes are resolved: timeouts, errors, crashes, an unreachable gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.db.database import Database
from deploy.local.gateway.simulator import GatewaySimulator
from tally.payment.v1 import payment_pb2 as pb
from tests.support.payments import (
    SHORT_GATEWAY_LIMITS,
    Serve,
    charge,
    confirm,
    insert_claim,
    key_of,
    only_payment,
    until_at_gateway,
    until_state,
)
from tests.support.refusals import refused
from tests.support.time_limits import SOON_S


@pytest.mark.parametrize("prefix", ["timeout_after_charge_", "error_after_charge_"])
async def test_a_charge_with_a_lost_response_is_found(
    serve: Serve, gateway: GatewaySimulator, prefix: str
) -> None:
    key = key_of(prefix)
    async with serve(2, gateway, **SHORT_GATEWAY_LIMITS) as (payment, elsewhere):
        with refused("PAYMENT_OUTCOME_UNKNOWN") as raised:
            await payment.ConfirmPayment(confirm(key))
        assert raised.refusal.retry_after_s is not None
        # It was not stored as the response: the same request waits for the outcome.
        for replica in (elsewhere, payment):
            again = await replica.ConfirmPayment(confirm(key))
            assert (again.replayed, again.payment.state) == (True, pb.Payment.STATE_CONFIRMED)
        with refused("PAYMENT_KEY_USED"):
            await elsewhere.ConfirmPayment(confirm(key, "c2"))
    record = gateway.charges()[key]
    assert record["confirmCalls"] == 1
    assert record["payment"]["status"] == "DONE"


async def test_a_confirm_that_charged_nothing_is_sent_again(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of("error_")
    with refused("PAYMENT_OUTCOME_UNKNOWN"):
        await payment.ConfirmPayment(confirm(key))
    for _ in range(2):
        with refused("PAYMENT_DECLINED"):
            await elsewhere.ConfirmPayment(confirm(key))
    declined = await only_payment(payment)
    assert declined.failure_code == "REJECT_CARD_COMPANY"
    assert gateway.charges()[key]["confirmCalls"] == 2


async def test_an_unknown_key_is_not_free(serve: Serve, own_gateway: GatewaySimulator) -> None:
    key = key_of("timeout_after_charge_")
    # The outcome stays unknown: the gateway stops before the first retry, and no sweep runs.
    async with serve(2, own_gateway, resolve_interval_s=60, resolve_concurrency=1) as (one, other):
        blocked = asyncio.ensure_future(one.ConfirmPayment(confirm(key)))
        await until_at_gateway(own_gateway, key, "DONE")
        own_gateway.kill()
        with refused("PAYMENT_OUTCOME_UNKNOWN"):
            await blocked
        unknown = await only_payment(other)
        assert unknown.state == pb.Payment.STATE_UNKNOWN
        for replica in (one, other):
            with refused("PAYMENT_IN_PROGRESS"):
                await replica.ConfirmPayment(confirm(key, "c2"))
        with refused("PAYMENT_OUTCOME_UNKNOWN"):
            await one.ConfirmPayment(confirm(key), timeout=SOON_S)
        own_gateway.start()
    async with serve(1, own_gateway) as (fresh,):
        await until_state(fresh, unknown.payment_id, pb.Payment.STATE_CONFIRMED)
        again = await fresh.ConfirmPayment(confirm(key))
        assert again.replayed
    assert own_gateway.charges()[key]["payment"]["status"] == "DONE"


async def test_a_call_that_was_not_sent_frees_the_key(
    serve: Serve, own_gateway: GatewaySimulator
) -> None:
    async with serve(2, own_gateway, gateway_breaker_pause_s=0.1) as (one, other):
        key = key_of()
        own_gateway.kill()
        for replica in (one, other):
            with refused("GATEWAY_UNAVAILABLE") as raised:
                await replica.ConfirmPayment(confirm(key))
            assert raised.refusal.retry_after_s is not None
        listed = await one.ListPayments(pb.ListPaymentsRequest(user_id="ann"))
        assert not listed.payments
        own_gateway.start()
        paid = await other.ConfirmPayment(confirm(key, "c2"))
        assert not paid.replayed
        with refused("PAYMENT_KEY_USED"):
            await one.ConfirmPayment(confirm(key))


async def test_an_open_circuit_frees_the_key(serve: Serve, own_gateway: GatewaySimulator) -> None:
    async with serve(
        1,
        own_gateway,
        gateway_breaker_failures=1,
        gateway_breaker_pause_s=60,
    ) as (one,):
        with refused("PAYMENT_OUTCOME_UNKNOWN"):
            await one.ConfirmPayment(confirm(key_of("error_after_charge_")))
        key = key_of()
        with refused("GATEWAY_UNAVAILABLE"):
            await one.ConfirmPayment(confirm(key, "c2"))
    assert key not in own_gateway.charges()


async def abandoned(sessions: Database, key: str) -> str:
    async with sessions.begin() as connection:
        return await insert_claim(connection, key)


@pytest.mark.parametrize("charged", [False, True], ids=["before the call", "after the call"])
async def test_the_claim_of_a_dead_replica_is_finished_by_another(
    serve: Serve, gateway: GatewaySimulator, sessions: Database, charged: bool
) -> None:
    key = key_of()
    payment_id = await abandoned(sessions, key)
    if charged:
        await charge(gateway, key, 15_000, idempotency_key=f"confirm:{payment_id}")
    async with serve(2, gateway) as (one, other):
        await until_state(one, payment_id, pb.Payment.STATE_CONFIRMED)
        for replica in (one, other):
            again = await replica.ConfirmPayment(confirm(key))
            assert (again.replayed, again.payment.payment_id) == (True, payment_id)
    record = gateway.charges()[key]
    assert record["confirmCalls"] == 1
    assert record["payment"]["status"] == "DONE"


async def test_a_claim_that_another_replica_acquired_is_not_freed(
    serve: Serve, own_gateway: GatewaySimulator, sessions: Database
) -> None:
    key = key_of()
    payment_id = await abandoned(sessions, key)
    own_gateway.kill()
    # It cannot be reached now, but the dead replica may have reached it.
    async with serve(1, own_gateway) as (one,):
        await until_state(one, payment_id, pb.Payment.STATE_UNKNOWN)
        with refused("PAYMENT_IN_PROGRESS"):
            await one.ConfirmPayment(confirm(key, "c2"))
        own_gateway.start()
        await until_state(one, payment_id, pb.Payment.STATE_CONFIRMED)


async def test_another_amount_under_the_key_stays_unknown(
    payment: Any, gateway: GatewaySimulator
) -> None:
    key = key_of()
    await charge(gateway, key, 1)
    with refused("PAYMENT_OUTCOME_UNKNOWN"):
        await payment.ConfirmPayment(confirm(key))
    unknown = await only_payment(payment)
    assert unknown.state == pb.Payment.STATE_UNKNOWN
    assert not unknown.gateway_transaction_id


async def test_a_wrong_secret_key_charges_nothing_and_frees_the_key(
    serve: Serve, own_gateway: GatewaySimulator
) -> None:
    key = key_of()
    right = own_gateway.secret_key
    own_gateway.secret_key = "wrong"
    async with serve(1, own_gateway) as (one,):
        with refused("GATEWAY_UNAVAILABLE"):
            await one.ConfirmPayment(confirm(key))
    own_gateway.secret_key = right
    async with serve(1, own_gateway) as (one,):
        await one.ConfirmPayment(confirm(key, "c2"))
