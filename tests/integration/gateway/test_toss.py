"""The adapter and the simulator together; the prefixes of keys are in tests/integration/payment."""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from common.money import Money
from deploy.local.gateway.simulator import GatewaySimulator
from payment_service.gateway.outcomes import (
    Cancelled,
    Charge,
    Confirmed,
    NotFound,
)
from payment_service.gateway.toss import TossGateway, TossOptions


def charge(payment_key: str) -> Charge:
    return Charge(payment_key, "order-1", Money("KRW", 15_000), f"confirmation-of-{payment_key}")


@pytest.fixture
async def toss(simulator: GatewaySimulator) -> AsyncIterator[TossGateway]:
    key = SecretStr(simulator.secret_key)
    made = TossGateway(TossOptions(simulator.url, key, timeout_s=3.0))
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


async def test_the_secret_key_is_never_logged(
    simulator: GatewaySimulator, toss: TossGateway, caplog: pytest.LogCaptureFixture
) -> None:
    encoded = base64.b64encode(f"{simulator.secret_key}:".encode()).decode()
    with caplog.at_level(logging.DEBUG):
        await toss.confirm(charge("plain"))
        await toss.confirm(charge("error_2"))
    assert simulator.secret_key not in caplog.text
    assert encoded not in caplog.text
