"""The adapter and the simulator together: each prefix, as payment_service will meet it."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from common.money import Money
from deploy.local.gateway.simulator import GatewaySimulator
from payment_service.gateway.outcomes import (
    Cancelled,
    Charge,
    Confirmed,
    Declined,
    Mismatch,
    NotCancellable,
    NotFound,
    NotSent,
    Rejected,
    Unknown,
)
from payment_service.gateway.toss import TossGateway, TossOptions


def charge(payment_key: str, **changes: Any) -> Charge:
    fields: dict[str, Any] = {"order_id": "order-1", "amount": Money("KRW", 15_000)} | changes
    return Charge(payment_key, idempotency_key=f"confirmation-of-{payment_key}", **fields)


def options(simulator: GatewaySimulator, **changes: Any) -> TossOptions:
    return TossOptions(simulator.url, SecretStr(simulator.secret_key), **changes)


@pytest.fixture
async def toss(simulator: GatewaySimulator) -> AsyncIterator[TossGateway]:
    made = TossGateway(options(simulator))
    yield made
    await made.aclose()


@pytest.mark.parametrize("payment_key", ["plain", "slow_1", "a:b@c.d-e_f"])
async def test_confirm_find_cancel(
    simulator: GatewaySimulator, toss: TossGateway, payment_key: str
) -> None:
    asked = charge(payment_key)
    assert await toss.find(asked) == NotFound()
    confirmed = await toss.confirm(asked)
    assert isinstance(confirmed, Confirmed)
    assert confirmed.amount == asked.amount
    assert await toss.confirm(asked) == confirmed
    assert await toss.find(asked) == confirmed

    cancelled = await toss.cancel(asked, "no longer wanted")
    assert isinstance(cancelled, Cancelled)
    assert await toss.cancel(asked, "no longer wanted") == cancelled
    assert await toss.find(asked) == cancelled
    assert simulator.charges()[payment_key]["payment"]["balanceAmount"] == 0


async def test_decline(toss: TossGateway) -> None:
    asked = charge("decline_1")
    assert await toss.confirm(asked) == Declined("REJECT_CARD_PAYMENT")
    assert await toss.find(asked) == Declined("REJECT_CARD_PAYMENT")
    assert await toss.cancel(asked, "r") == NotCancellable("NOT_CANCELABLE_PAYMENT")


async def test_error_ends_declined_after_asking_and_sending_again(
    simulator: GatewaySimulator, toss: TossGateway
) -> None:
    asked = charge("error_1")
    assert isinstance(await toss.confirm(asked), Unknown)
    assert await toss.find(asked) == NotFound()
    assert await toss.confirm(asked) == Declined("REJECT_CARD_COMPANY")
    assert await toss.find(asked) == Declined("REJECT_CARD_COMPANY")
    assert simulator.charges()["error_1"]["payment"]["status"] == "ABORTED"


async def test_error_after_charge_is_unknown_until_asked(toss: TossGateway) -> None:
    asked = charge("error_after_charge_1")
    assert isinstance(await toss.confirm(asked), Unknown)
    assert isinstance(await toss.find(asked), Confirmed)


async def test_timeout_after_charge_is_unknown_until_asked(simulator: GatewaySimulator) -> None:
    impatient = TossGateway(options(simulator, timeout_s=3.0))
    asked = charge("timeout_after_charge_1")
    assert isinstance(await impatient.confirm(asked), Unknown)
    assert isinstance(await impatient.find(asked), Confirmed)
    assert simulator.charges()["timeout_after_charge_1"]["confirmCalls"] == 1
    await impatient.aclose()


async def test_an_idempotency_key_used_for_another_payment_is_noticed(toss: TossGateway) -> None:
    first = Charge("one", "order-1", Money("KRW", 100), "shared")
    second = Charge("two", "order-2", Money("KRW", 100), "shared")
    assert isinstance(await toss.confirm(first), Confirmed)
    assert await toss.confirm(second) == Mismatch(("paymentKey", "orderId"))


async def test_other_amount_or_currency_under_the_key_is_noticed(toss: TossGateway) -> None:
    assert isinstance(await toss.confirm(charge("plain")), Confirmed)
    assert await toss.find(charge("plain", amount=Money("KRW", 1))) == Mismatch(("totalAmount",))
    assert await toss.find(charge("plain", amount=Money("USD", 15_000))) == Mismatch(("currency",))


async def test_a_wrong_secret_key_is_our_fault(simulator: GatewaySimulator) -> None:
    stranger = TossGateway(TossOptions(simulator.url, SecretStr("test_sk_wrong")))
    assert await stranger.confirm(charge("plain")) == Rejected("UNAUTHORIZED_KEY")
    assert await stranger.find(charge("plain")) == Rejected("UNAUTHORIZED_KEY")
    assert simulator.charges() == {}
    await stranger.aclose()


async def test_a_gateway_that_is_down_was_never_reached(
    simulator: GatewaySimulator, toss: TossGateway
) -> None:
    simulator.kill()
    assert await toss.confirm(charge("plain")) == NotSent("ConnectError")
    simulator.start()
    assert isinstance(await toss.confirm(charge("plain")), Confirmed)


async def test_the_secret_key_is_never_logged(
    simulator: GatewaySimulator, toss: TossGateway, caplog: pytest.LogCaptureFixture
) -> None:
    encoded = base64.b64encode(f"{simulator.secret_key}:".encode()).decode()
    with caplog.at_level(logging.DEBUG):
        await toss.confirm(charge("plain"))
        await toss.confirm(charge("error_2"))
    assert caplog.text
    assert simulator.secret_key not in caplog.text
    assert encoded not in caplog.text


async def test_a_call_that_gets_no_connection_was_never_sent() -> None:
    reached: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: reached.put_nowait(writer), "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    made = TossGateway(
        TossOptions(
            f"http://127.0.0.1:{port}", SecretStr("secret"), timeout_s=3.0, connections_max=1
        )
    )
    first = asyncio.create_task(made.confirm(charge("key-1")))
    writer = await reached.get()
    assert await made.confirm(charge("key-2")) == NotSent("PoolTimeout")
    assert isinstance(await first, Unknown)
    await made.aclose()
    writer.close()
    server.close()
