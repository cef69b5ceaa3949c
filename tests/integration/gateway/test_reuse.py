"""Connections to the gateway: when they are used again, and what is never sent twice."""

from __future__ import annotations

import asyncio

import pytest

from payment_service.gateway import exchange
from payment_service.gateway.outcomes import Confirmed, Unknown
from tests.integration.gateway.adapters import AWAITS_MAX, adapter, charge, pays
from tests.support.gateway_wire import LOST, Reply, Request, gateway_wire, reply


async def test_connections_are_used_again_until_they_idle_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "_IDLE_S_MAX", 2.0)
    async with gateway_wire(pays) as wire, adapter(wire.url) as toss:
        for number in range(5):
            assert type(await toss.confirm(charge(number))) is Confirmed
        assert wire.connections == 1
        await wire.until_open(0)
        assert type(await toss.confirm(charge("after"))) is Confirmed
        assert wire.connections == 2


UNASKED = {
    "an error": reply(400, {"code": "REJECT_CARD_PAYMENT", "message": "Another card's."}),
    "a time limit": reply(408, {"code": "REQUEST_TIMEOUT", "message": "Nothing was sent."}),
    "no http": Reply(b"BYE"),
}


@pytest.mark.parametrize("unasked", UNASKED)
async def test_what_came_on_an_idle_connection_answers_no_request(unasked: str) -> None:
    """An error does not name the payment that it is about."""
    async with gateway_wire(pays) as wire, adapter(wire.url) as toss:
        assert type(await toss.confirm(charge(1))) is Confirmed
        wire.send(UNASKED[unasked])
        for _ in range(AWAITS_MAX):  # until the library has read it
            await asyncio.sleep(0)
        assert type(await toss.confirm(charge(2))) is Confirmed
        assert len(wire.requests) == 2


@pytest.mark.parametrize("operation", ["confirm", "find", "cancel"])
async def test_no_request_is_sent_twice(operation: str) -> None:
    """The library alone repeats a GET on a connection that the server closed."""

    async def lost(request: Request) -> Reply:
        return LOST

    async with gateway_wire(pays) as wire, adapter(wire.url) as toss:
        assert type(await toss.confirm(charge(1))) is Confirmed
        wire.answer = lost
        arguments = [charge(2), "reason"][: 2 if operation == "cancel" else 1]
        assert isinstance(await getattr(toss, operation)(*arguments), Unknown)
        assert len(wire.requests) == 2


async def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with gateway_wire(pays) as wire, adapter(wire.url) as toss:
        assert type(await toss.confirm(charge(1))) is Confirmed
