"""CancelPayment: before, during, after and without its confirmation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from common.db.database import Database
from deploy.local.gateway.simulator import GatewaySimulator
from payment_service.tables import payments
from tally.payment.v1 import payment_pb2 as pb
from tests.support.payments import (
    SHORT_GATEWAY_LIMITS,
    Serve,
    cancel,
    confirm,
    held_at_gateway,
    key_of,
    only_payment,
    until,
    until_state,
)
from tests.support.refusals import outcome, refused
from tests.support.time_limits import SOON_S


async def test_a_confirmed_payment_is_given_back_once(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of()
    paid = (await payment.ConfirmPayment(confirm(key))).payment
    first = await elsewhere.CancelPayment(cancel())
    assert not first.replayed
    assert first.payment.state == pb.Payment.STATE_CANCELLED
    assert first.payment.payment_id == paid.payment_id
    assert first.payment.gateway_transaction_id == paid.gateway_transaction_id
    for request_id in ("x1", "x2", "x2"):
        again = await payment.CancelPayment(cancel(request_id=request_id))
        assert (again.replayed, again.payment) == (True, first.payment)
    for replica in (payment, elsewhere):
        with refused("PAYMENT_CANCELLED"):
            await replica.ConfirmPayment(confirm(key))
        with refused("PAYMENT_KEY_USED"):
            await replica.ConfirmPayment(confirm(key, "c2"))
        with refused("REQUEST_ID_REUSED"):
            await replica.CancelPayment(cancel("c9"))
        with refused("REQUEST_ID_REUSED"):
            await replica.CancelPayment(cancel(reason="another"))
    record = gateway.charges()[key]
    assert record["payment"]["status"] == "CANCELED"
    assert record["payment"]["balanceAmount"] == 0
    assert record["cancelCalls"] == 1


async def test_a_cancellation_before_the_confirmation_prevents_it(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of()
    first = await payment.CancelPayment(cancel())
    assert not first.HasField("payment")
    assert not first.replayed
    for request_id in ("x1", "x2"):
        again = await elsewhere.CancelPayment(cancel(request_id=request_id))
        assert not again.HasField("payment")
        assert again.replayed
    with refused("PAYMENT_CANCELLED"):
        await elsewhere.ConfirmPayment(confirm(key))
    assert key not in gateway.charges()
    # The key itself stays free.
    await payment.ConfirmPayment(confirm(key, "c2"))


async def test_cancelling_a_declined_payment_refunds_nothing(payment: Any, elsewhere: Any) -> None:
    key = key_of("decline_")
    with refused("PAYMENT_DECLINED"):
        await payment.ConfirmPayment(confirm(key))
    for request_id in ("x1", "x1", "x2"):
        response = await elsewhere.CancelPayment(cancel(request_id=request_id))
        assert response.payment.state == pb.Payment.STATE_DECLINED
    with refused("PAYMENT_CANCELLED"):
        await payment.ConfirmPayment(confirm(key))


async def until_requested(sessions: Database) -> None:
    """Wait until the cancellation request of the only payment is stored."""

    async def stored() -> bool:
        async with sessions.reads.connect() as connection:
            return bool(await connection.scalar(sa.select(payments.c.cancel_request_id)))

    await until(stored)


@pytest.mark.parametrize("where", [0, 1], ids=["same replica", "other replica"])
async def test_a_payment_at_the_gateway_is_awaited_and_given_back(
    stubs: list[Any],
    gateway: GatewaySimulator,
    sessions: Database,
    where: int,
) -> None:
    key = key_of()
    with held_at_gateway(key):
        first = asyncio.ensure_future(outcome(stubs[0].ConfirmPayment(confirm(key))))
        await only_payment(stubs[0])
        cancelling = asyncio.ensure_future(stubs[where].CancelPayment(cancel()))
        await until_requested(sessions)
        assert not cancelling.done()
    response = await cancelling
    assert response.payment.state == pb.Payment.STATE_CANCELLED
    assert not response.replayed
    assert await first == "PAYMENT_CANCELLED"
    assert gateway.charges()[key]["payment"]["status"] == "CANCELED"


@pytest.mark.parametrize("prefix", ["timeout_after_charge_", "error_after_charge_"])
async def test_an_unknown_payment_is_looked_up_and_given_back(
    serve: Serve, gateway: GatewaySimulator, prefix: str
) -> None:
    key = key_of(prefix)
    async with serve(2, gateway, **SHORT_GATEWAY_LIMITS) as (payment, elsewhere):
        with refused("PAYMENT_OUTCOME_UNKNOWN"):
            await payment.ConfirmPayment(confirm(key))
        given_back = (await elsewhere.CancelPayment(cancel())).payment
        assert given_back.state == pb.Payment.STATE_CANCELLED
        assert gateway.charges()[key]["payment"]["status"] == "CANCELED"
        with refused("PAYMENT_CANCELLED"):
            await payment.ConfirmPayment(confirm(key))


async def test_concurrent_cancellations_give_back_once(
    stubs: list[Any], gateway: GatewaySimulator
) -> None:
    key = key_of()
    await stubs[0].ConfirmPayment(confirm(key))
    calls = [
        stubs[number % 2].CancelPayment(cancel(request_id=f"x{number % 5}")) for number in range(10)
    ]
    responses = await asyncio.gather(*calls)
    assert {response.payment.state for response in responses} == {pb.Payment.STATE_CANCELLED}
    assert [response.replayed for response in responses].count(False) == 1
    assert gateway.charges()[key]["cancelCalls"] == 1


async def test_a_concurrent_confirmation_and_cancellation_charge_nothing(
    stubs: list[Any], gateway: GatewaySimulator
) -> None:
    keys = [key_of() for _ in range(40)]
    calls = []
    for number, key in enumerate(keys):
        calls += [
            outcome(stubs[number % 2].ConfirmPayment(confirm(key, f"c{number}"))),
            outcome(stubs[(number + 1) % 2].CancelPayment(cancel(f"c{number}", f"x{number}"))),
        ]
    results = await asyncio.gather(*calls)
    charges = gateway.charges()
    for number, key in enumerate(keys):
        response = results[2 * number + 1]
        charged = key in charges
        assert response.HasField("payment") == charged
        if charged:
            assert charges[key]["payment"]["status"] == "CANCELED"
        with refused("PAYMENT_CANCELLED"):
            await stubs[0].ConfirmPayment(confirm(key, f"c{number}"))


async def test_a_cancellation_request_survives_an_outage_of_the_gateway(
    serve: Serve, own_gateway: GatewaySimulator
) -> None:
    key = key_of()
    async with serve(2, own_gateway) as (one, other):
        await one.ConfirmPayment(confirm(key))
        own_gateway.kill()
        for replica in (one, other):
            reason = await outcome(replica.CancelPayment(cancel(), timeout=SOON_S))
            assert reason in {"GATEWAY_UNAVAILABLE", "PAYMENT_OUTCOME_UNKNOWN"}
        with refused("PAYMENT_CANCELLED"):
            await other.ConfirmPayment(confirm(key))
        paid = await only_payment(one)
        assert paid.state == pb.Payment.STATE_CONFIRMED
        own_gateway.start()
        await until_state(one, paid.payment_id, pb.Payment.STATE_CANCELLED)
        finished = await other.CancelPayment(cancel())
        assert finished.payment.state == pb.Payment.STATE_CANCELLED
        assert not finished.replayed
    assert own_gateway.charges()[key]["payment"]["status"] == "CANCELED"


async def test_a_request_id_of_an_open_cancellation_cannot_be_reused(
    serve: Serve, own_gateway: GatewaySimulator
) -> None:
    keys = [key_of(), key_of()]
    async with serve(2, own_gateway) as (one, other):
        for number, key in enumerate(keys):
            await one.ConfirmPayment(confirm(key, f"c{number}"))
        own_gateway.kill()
        with refused("GATEWAY_UNAVAILABLE"):
            await one.CancelPayment(cancel("c0"))
        for replica in (one, other):
            with refused("REQUEST_ID_REUSED"):
                await replica.CancelPayment(cancel("c1"))
        assert (await one.ConfirmPayment(confirm(keys[1], "c1"))).replayed
