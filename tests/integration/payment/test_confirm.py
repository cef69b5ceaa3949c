"""ConfirmPayment as a client sees it: charged, declined, replayed, refused, read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deploy.local.gateway.simulator import GatewaySimulator
from tally.payment.v1 import payment_pb2 as pb
from tests.support.pages import pages_of
from tests.support.payments import (
    cancel,
    confirm,
    held_at_gateway,
    key_of,
    only_payment,
    until_state,
)
from tests.support.refusals import outcome, refused
from tests.support.time_limits import SOON_S


async def test_a_key_is_charged_and_the_payment_has_all_fields(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of()
    response = await payment.ConfirmPayment(confirm(key))
    paid = response.payment
    assert not response.replayed
    assert paid.state == pb.Payment.STATE_CONFIRMED
    assert (paid.user_id, paid.order_id, paid.payment_key) == ("ann", "order-1", key)
    assert paid.amount.amount_minor == 15_000
    assert paid.gateway == "toss"
    assert paid.create_time.ToDatetime() <= paid.update_time.ToDatetime()
    record = gateway.charges()[key]
    assert record["payment"]["lastTransactionKey"] == paid.gateway_transaction_id
    assert record["payment"]["totalAmount"] == 15_000
    asked = pb.GetPaymentRequest(payment_id=paid.payment_id, user_id="ann")
    assert (await elsewhere.GetPayment(asked)).payment == paid


async def test_a_request_is_replayed_by_any_replica(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of()
    first = await payment.ConfirmPayment(confirm(key))
    for replica in (payment, elsewhere):
        again = await replica.ConfirmPayment(confirm(key))
        assert (again.replayed, again.payment) == (True, first.payment)
        with refused("PAYMENT_KEY_USED"):
            await replica.ConfirmPayment(confirm(key, "c2"))
        with refused("PAYMENT_KEY_USED"):
            await replica.ConfirmPayment(confirm(key, user_id="bob"))
    assert gateway.charges()[key]["confirmCalls"] == 1


async def test_a_request_id_is_unique_per_user(payment: Any) -> None:
    await payment.ConfirmPayment(confirm(key_of()))
    response = await payment.ConfirmPayment(confirm(key_of(), user_id="bob"))
    assert not response.replayed


async def test_a_decline_is_stored_and_replayed(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of("decline_")
    for replica in (payment, elsewhere, payment):
        with refused("PAYMENT_DECLINED") as raised:
            await replica.ConfirmPayment(confirm(key))
        assert raised.refusal.metadata["failure_code"] == "REJECT_CARD_PAYMENT"
        assert raised.refusal.retry_after_s is None
        with refused("PAYMENT_KEY_USED"):
            await replica.ConfirmPayment(confirm(key, "c2"))
    kept = await only_payment(payment)
    assert kept.state == pb.Payment.STATE_DECLINED
    assert kept.failure_code == "REJECT_CARD_PAYMENT"
    assert gateway.charges()[key]["confirmCalls"] == 1


async def test_another_request_is_refused_while_the_key_is_in_progress(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of()
    with held_at_gateway(key):
        first = asyncio.ensure_future(payment.ConfirmPayment(confirm(key)))
        pending = await only_payment(payment)
        assert pending.state == pb.Payment.STATE_PENDING
        for replica in (payment, elsewhere):
            with refused("PAYMENT_IN_PROGRESS") as raised:
                await replica.ConfirmPayment(confirm(key, "c2"))
            assert raised.refusal.retry_after_s is not None
            with refused("REQUEST_ID_REUSED"):
                await replica.ConfirmPayment(confirm(key, amount_minor=7))
    assert (await first).payment.state == pb.Payment.STATE_CONFIRMED
    with refused("PAYMENT_KEY_USED"):
        await elsewhere.ConfirmPayment(confirm(key, "c2"))
    assert gateway.charges()[key]["confirmCalls"] == 1


async def test_a_cancelled_call_still_confirms_the_payment(
    payment: Any, elsewhere: Any, gateway: GatewaySimulator
) -> None:
    key = key_of()
    with held_at_gateway(key):
        call = asyncio.ensure_future(payment.ConfirmPayment(confirm(key)))
        pending = await only_payment(payment)
        call.cancel()
        await asyncio.wait({call})
    await until_state(payment, pending.payment_id, pb.Payment.STATE_CONFIRMED)
    again = await elsewhere.ConfirmPayment(confirm(key))
    assert again.replayed
    assert gateway.charges()[key]["confirmCalls"] == 1


async def test_a_duplicate_with_little_time_gets_request_in_progress(
    payment: Any, elsewhere: Any
) -> None:
    key = key_of()
    with held_at_gateway(key):
        first = asyncio.ensure_future(payment.ConfirmPayment(confirm(key)))
        await only_payment(payment)
        calls = [each.ConfirmPayment(confirm(key), timeout=SOON_S) for each in (payment, elsewhere)]
        assert await asyncio.gather(*map(outcome, calls)) == ["REQUEST_IN_PROGRESS"] * 2
    assert (await first).payment.state == pb.Payment.STATE_CONFIRMED


async def test_payments_are_listed_in_pages_newest_first(payment: Any) -> None:
    confirmed = []
    for number in range(7):
        request = confirm(key_of(), f"c{number}", order_id=f"order-{number % 2}")
        confirmed.append((await payment.ConfirmPayment(request)).payment)
    newest = confirmed[::-1]
    of_user = pb.ListPaymentsRequest(user_id="ann", page_size=3)
    assert await pages_of(payment.ListPayments, of_user) == [newest[:3], newest[3:6], newest[6:]]
    of_order = pb.ListPaymentsRequest(user_id="ann", order_id="order-1")
    assert await pages_of(payment.ListPayments, of_order) == [newest[1::2]]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, True),
        ({"user_id": "ann"}, True),
        ({"user_id": "ann", "order_id": "order-1"}, True),
        ({"user_id": "bob"}, False),
        ({"order_id": "order-2"}, False),
    ],
)
async def test_an_operator_finds_the_payment_of_a_key_without_its_user(
    payment: Any, filters: dict[str, Any], *, found: bool
) -> None:
    key = key_of()
    paid = (await payment.ConfirmPayment(confirm(key, order_id="order-1"))).payment
    listed = await payment.ListPayments(pb.ListPaymentsRequest(payment_key=key, **filters))
    assert list(listed.payments) == ([paid] if found else [])
    nothing = pb.ListPaymentsRequest(payment_key=key_of(), **filters)
    assert not (await payment.ListPayments(nothing)).payments


async def test_confirmations_are_read_by_their_request_ids(payment: Any, elsewhere: Any) -> None:
    with refused("PAYMENT_DECLINED"):
        await payment.ConfirmPayment(confirm(key_of("decline_"), "declined"))
    oldest = (await payment.ConfirmPayment(confirm(key_of(), "c1"))).payment
    await payment.ConfirmPayment(confirm(key_of(), "c1", user_id="bob"))
    await payment.CancelPayment(cancel("never"))
    asked = ["never", "c1", "declined", "c1", *(f"unknown-{number}" for number in range(496))]
    read = await elsewhere.GetConfirmations(pb.GetConfirmationsRequest(confirm_request_ids=asked))
    found = read.confirmations
    assert [each.confirm_request_id for each in found] == asked
    assert [each.HasField("payment") for each in found] == [False, True, True, True] + [False] * 496
    assert found[1].payment == found[3].payment == oldest
    assert found[2].payment.state == pb.Payment.STATE_DECLINED
