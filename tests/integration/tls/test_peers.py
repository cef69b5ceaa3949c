"""A certificate identifies a service as its token does: the same access, the same refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.ids import new_id
from tally.order.v1 import order_pb2 as pb
from tally_client import NotPermitted, Tally, TokenInvalid, TokenMissing
from tests.integration.tls.conftest import Mutual
from tests.support.balances import charge, deduct
from tests.support.certificates import (
    ORDER,
    STRANGER,
    TILL,
    certificates_in,
    write_certificate,
)
from tests.support.orders import Shop, fresh, pay
from tests.support.replicas import channel
from tests.support.stack import Stack
from tests.support.tokens import Authorized

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def peer(mutual: Mutual, *uris: str, token: str | None = None) -> AsyncIterator[Tally]:
    """A client of the balance service's port of peers, with a certificate of these URIs."""
    directory = write_certificate(mutual.folder / fresh("peer"), mutual.authority, uris=uris)
    async with Tally(
        balance=mutual.addresses["balance"], certificates=certificates_in(directory), token=token
    ) as opened:
        yield opened


async def test_an_order_is_paid_by_calls_with_a_certificate_and_no_token(
    stack: Stack, mutual: Mutual
) -> None:
    """Sagas use their own request_ids, which nobody else may."""
    user = "ada"
    async with peer(mutual, TILL) as till:
        await till.balance.charge_balance(charge(user, 20_000, fresh()))
    async with channel(*stack.order_addresses) as opened:
        operator: Any = Authorized(opened, mutual.issuer.token("olga", "operator"))
        shop = Shop.at(operator)
        order = await shop.order(user, {await shop.product(5, price=5_000): 2})
        paid = await shop.orders.PayOrder(pay(order, balance=10_000))
    assert paid.order.state == pb.Order.STATE_PAID
    assert "deduct_balance" in stack.wire.calls


async def test_the_order_services_certificate_may_use_request_ids_of_sagas(
    stack: Stack, mutual: Mutual
) -> None:
    id_ = f"{new_id()}:deduct_balance"
    async with peer(mutual, TILL) as till:
        await till.balance.charge_balance(charge("bea", 10, fresh()))
    async with peer(mutual, ORDER) as order:
        posted = await order.balance.deduct_balance(deduct("bea", 1, id_))
    assert posted.entry.request_id == id_


async def test_a_service_has_its_own_methods_only(stack: Stack, mutual: Mutual) -> None:
    async with peer(mutual, TILL) as till:
        await till.balance.charge_balance(charge("cid", 10, fresh()))
        with pytest.raises(NotPermitted):
            await till.balance.deduct_balance(deduct("cid", 1, fresh()))


@pytest.mark.parametrize("uris", [(), (STRANGER,), (ORDER, TILL), (f"{ORDER}/x",)])
async def test_a_certificate_that_names_no_service_is_refused(
    stack: Stack, mutual: Mutual, uris: tuple[str, ...]
) -> None:
    with capture_logs() as logged:
        async with peer(mutual, *uris) as stranger:
            with pytest.raises(NotPermitted):
                await stranger.balance.charge_balance(charge("dan", 10, fresh()))
    assert [line["event"] for line in logged if line["event"] == "peer_refused"]
    assert await stack.databases.sql("balance", "SELECT 1 FROM accounts WHERE user_id='dan'") == ""


async def test_a_token_is_used_before_the_certificate(stack: Stack, mutual: Mutual) -> None:
    """A bad one is refused: what is sent to identify the caller decides."""
    user = mutual.issuer.token("eve")
    async with peer(mutual, ORDER, token=user) as both:
        with pytest.raises(NotPermitted):
            await both.balance.deduct_balance(deduct("eve", 1, fresh()))
    async with peer(mutual, ORDER, token="garbage") as both:
        with pytest.raises(TokenInvalid):
            await both.balance.deduct_balance(deduct("eve", 1, fresh()))


async def test_the_port_of_clients_needs_a_token(stack: Stack, mutual: Mutual) -> None:
    async with Tally(balance=stack.peers["balance"]) as client:
        with pytest.raises(TokenMissing):
            await client.balance.charge_balance(charge("fay", 10, fresh()))
