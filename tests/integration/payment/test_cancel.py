"""CancelPayment: before, during, after and without its confirmation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tally.payment.v1 import payment_pb2 as pb
from tests.support.patience import SOON_S
from tests.support.payments import (
    IMPATIENT_WITH_GATEWAY,
    cancel,
    confirm,
    held,
    key_of,
    only_payment,
    payment_replicas,
    until,
    until_state,
)
from tests.support.refusals import outcome, refused


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[GatewaySimulator]:
    """A gateway that a test may stop."""
    with GatewaySimulator(tmp_path / "gateway.db") as running:
        yield running


async def test_what_was_paid_is_given_back_once(
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
        assert again.replayed
        assert again.payment == first.payment
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


async def test_a_cancellation_before_its_confirmation_keeps_it_from_happening(
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
    # The key itself is as free as ever.
    await payment.ConfirmPayment(confirm(key, "c2"))


async def test_a_declined_one_has_nothing_to_give_back(payment: Any, elsewhere: Any) -> None:
    key = key_of("decline_")
    with refused("PAYMENT_DECLINED"):
        await payment.ConfirmPayment(confirm(key))
    for request_id in ("x1", "x1", "x2"):
        response = await elsewhere.CancelPayment(cancel(request_id=request_id))
        assert response.payment.state == pb.Payment.STATE_DECLINED
    with refused("PAYMENT_CANCELLED"):
        await payment.ConfirmPayment(confirm(key))


async def until_wished(server: PostgresServer, urls: ServiceUrls) -> None:
    """Wait until the cancellation of the only payment is on record."""
    name = urls.owner.rpartition("/")[2]

    async def seen() -> bool:
        asked = "SELECT count(cancel_request_id) FROM payments"
        return (await asyncio.to_thread(server.run_sql, asked, database=name)).strip() == "1"

    await until(seen)


@pytest.mark.parametrize("where", [0, 1], ids=["same replica", "other replica"])
async def test_one_at_the_gateway_is_waited_for_and_given_back(
    stubs: list[Any],
    gateway: GatewaySimulator,
    payment_database: ServiceUrls,
    postgres_server: PostgresServer,
    where: int,
) -> None:
    key = key_of()
    with held(key):
        first = asyncio.ensure_future(outcome(stubs[0].ConfirmPayment(confirm(key))))
        await only_payment(stubs[0])
        undoing = asyncio.ensure_future(stubs[where].CancelPayment(cancel()))
        await until_wished(postgres_server, payment_database)
        assert not undoing.done()
    response = await undoing
    assert response.payment.state == pb.Payment.STATE_CANCELLED
    assert not response.replayed
    assert await first == "PAYMENT_CANCELLED"
    assert gateway.charges()[key]["payment"]["status"] == "CANCELED"


@pytest.mark.parametrize("prefix", ["timeout_after_charge_", "error_after_charge_"])
async def test_an_unknown_one_is_found_out_and_given_back(
    payment_database: ServiceUrls, redis_url: str, gateway: GatewaySimulator, prefix: str
) -> None:
    key = key_of(prefix)
    async with payment_replicas(
        2, payment_database, gateway, redis_url, **IMPATIENT_WITH_GATEWAY
    ) as (payment, elsewhere):
        with refused("PAYMENT_OUTCOME_UNKNOWN"):
            await payment.ConfirmPayment(confirm(key))
        response = await elsewhere.CancelPayment(cancel())
        assert response.payment.state == pb.Payment.STATE_CANCELLED
        assert gateway.charges()[key]["payment"]["status"] == "CANCELED"
        with refused("PAYMENT_CANCELLED"):
            await payment.ConfirmPayment(confirm(key))


async def test_an_unknown_one_that_was_never_charged_ends_declined(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of("error_")
    with refused("PAYMENT_OUTCOME_UNKNOWN"):
        await payment.ConfirmPayment(confirm(key))
    response = await elsewhere.CancelPayment(cancel())
    assert response.payment.state == pb.Payment.STATE_DECLINED
    assert gateway.charges()[key]["payment"]["status"] == "ABORTED"


async def test_many_cancellations_give_back_once(
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


async def test_a_cancellation_and_its_confirmation_at_once_leave_nothing_charged(
    stubs: list[Any], gateway: GatewaySimulator
) -> None:
    keys = [key_of() for _ in range(40)]
    calls = []
    for number, key in enumerate(keys):
        calls += [
            outcome(stubs[number % 2].ConfirmPayment(confirm(key, f"c{number}"))),
            outcome(stubs[(number + 1) % 2].CancelPayment(cancel(f"c{number}", f"x{number}"))),
        ]
    told = await asyncio.gather(*calls)
    charges = gateway.charges()
    for number, key in enumerate(keys):
        response = told[2 * number + 1]
        charged = key in charges
        assert response.HasField("payment") == charged
        if charged:
            assert charges[key]["payment"]["status"] == "CANCELED"
        with refused("PAYMENT_CANCELLED"):
            await stubs[0].ConfirmPayment(confirm(key, f"c{number}"))


async def test_the_wish_outlives_a_gateway_that_is_down(
    payment_database: ServiceUrls, redis_url: str, own_gateway: GatewaySimulator
) -> None:
    key = key_of()
    async with payment_replicas(2, payment_database, own_gateway, redis_url) as (one, other):
        await one.ConfirmPayment(confirm(key))
        own_gateway.kill()
        for replica in (one, other):
            told = await outcome(replica.CancelPayment(cancel(), timeout=SOON_S))
            assert told in {"GATEWAY_UNAVAILABLE", "PAYMENT_OUTCOME_UNKNOWN"}
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


async def test_a_request_id_is_one_cancellations_while_that_is_still_open(
    payment_database: ServiceUrls, redis_url: str, own_gateway: GatewaySimulator
) -> None:
    keys = [key_of(), key_of()]
    async with payment_replicas(2, payment_database, own_gateway, redis_url) as (one, other):
        for number, key in enumerate(keys):
            await one.ConfirmPayment(confirm(key, f"c{number}"))
        own_gateway.kill()
        with refused("GATEWAY_UNAVAILABLE"):
            await one.CancelPayment(cancel("c0"))
        for replica in (one, other):
            with refused("REQUEST_ID_REUSED"):
                await replica.CancelPayment(cancel("c1"))
        assert (await one.ConfirmPayment(confirm(keys[1], "c1"))).replayed
