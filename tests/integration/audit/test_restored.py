"""One database is older than the others, as after a restore: what the audit names, and what RPCs
put right (docs/runbooks/restore.md).

Three orders are paid by coupon, 4,000 won of balance and the gateway; one of them is cancelled
again. The databases are copied before that. Then one of them goes back to its copy.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio
from pydantic import SecretStr

from balance_service.settings import BalanceSettings
from balance_service.wiring import build as build_balance
from coupon_service.settings import CouponSettings
from coupon_service.wiring import build as build_coupon
from deploy.audit.audit import Limits, audit
from deploy.audit.audit_pass import Note
from deploy.audit.report import Report
from deploy.audit.sources import Sources
from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.plan import SERVICES
from deploy.local.postgres_roles import ServiceUrls
from payment_service.settings import PaymentSettings
from payment_service.wiring import build as build_payment
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub
from tests.support.balances import charge, deduct, refund
from tests.support.coupons import issue, open_campaign, redeem, restore
from tests.support.databases import Databases, StackDatabases, name_of
from tests.support.orders import cancel as cancel_order
from tests.support.orders import fresh
from tests.support.orders import pay as pay_order
from tests.support.payments import LONG_GATEWAY_LIMITS, cancel, confirm, until
from tests.support.refusals import refused
from tests.support.replicas import channel, replicas
from tests.support.stack import Stack, Wire, running_stack

pytestmark = pytest.mark.asyncio(loop_scope="module")

DISCOUNT, BALANCE, GATEWAY = 1_000, 4_000, 5_000
PRICE: Final = DISCOUNT + BALANCE + GATEWAY


class Bought(NamedTuple):
    """An order that was paid after the copies were made."""

    order: order_pb2.Order
    paid_by: order_pb2.PayOrderRequest
    saga_id: str
    cancelled_by: str = ""
    """The saga of its cancellation."""

    def step(self, name: str) -> str:
        """The request_id of a step of the saga that paid."""
        return f"{self.saga_id}:{name}"


@dataclass(frozen=True)
class History:
    """What happened after the copies were made, and the names of both states of each database."""

    now: Mapping[str, str]
    older: Mapping[str, str]
    gateway_record: Path
    bought: tuple[Bought, Bought, Bought]
    """Paid; cancelled again; of a user who was charged and got the coupon after the copies."""
    issued: Any
    """The request for that coupon."""

    @property
    def in_force(self) -> tuple[Bought, Bought]:
        paid, _, newer = self.bought
        return paid, newer


async def _paid(stack: Stack, order: order_pb2.Order, request: order_pb2.PayOrderRequest) -> Bought:
    paid = (await stack.pay(request)).order
    assert paid.state == order_pb2.Order.STATE_PAID
    return Bought(paid, request, (await stack.saga(order)).saga_id)


async def _bought(
    stack: Stack,
    before: list[tuple[order_pb2.Order, order_pb2.PayOrderRequest]],
    issued: Any,
    user_id: str,
) -> tuple[Bought, Bought, Bought]:
    paid, cancelled = [await _paid(stack, *each) for each in before]
    response = await stack.cancel(cancel_order(cancelled.order, fresh("cancel")))
    assert response.order.state == order_pb2.Order.STATE_CANCELLED
    cancelled = cancelled._replace(cancelled_by=(await stack.saga(cancelled.order)).saga_id)
    await stack.balance.ChargeBalance(charge(user_id, 20_000, "newer"))
    coupon_id = (await stack.coupon.IssueCoupon(issued)).coupon.coupon_id
    order = await stack.order(user_id, PRICE)
    request = pay_order(order, coupon_id=coupon_id, balance=BALANCE, payment_key=fresh("key"))
    return paid, cancelled, await _paid(stack, order, request)


async def _until_all_left(opened: StackDatabases) -> None:
    """Wait until these databases have no session: only then can they be copied.

    A statement that was cancelled, as the readiness probe's when its replica stops, ends in this
    event loop after the replica has closed its pools. A copy that is made at once would block the
    loop and wait for it in vain.
    """
    names = ", ".join(f"'{name_of(urls)}'" for urls in opened.urls.values())
    left = f"SELECT pid FROM pg_stat_activity WHERE datname IN ({names})"
    await until(lambda: asyncio.to_thread(opened.server.run_sql, left), lambda found: not found)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def history(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[History]:
    record = tmp_path_factory.mktemp("restored") / "gateway.sqlite3"
    with ExitStack() as exits:
        opened = exits.enter_context(databases.clone_all())
        now = {service: name_of(urls) for service, urls in opened.urls.items()}
        with GatewaySimulator(record) as gateway:
            async with running_stack(opened, gateway, "", Wire(), orders=1) as stack:
                before = [await stack.order_paid_by_all() for _ in range(2)]
                issued = issue(await open_campaign(stack.coupon, fresh("campaign")), fresh("user"))
            await _until_all_left(opened)
            older = {}
            for service, name in now.items():
                older[service] = f"{name}_older"
                databases.server.create_database(older[service], service=service, template=name)
                exits.callback(databases.server.drop_database, older[service])
            async with running_stack(opened, gateway, "", Wire(), orders=1) as stack:
                bought = await _bought(stack, before, issued, issued.user_id)
            await _until_all_left(opened)
        yield History(now, older, record, bought, issued)


@dataclass(frozen=True)
class Restored:
    """Databases of which some are older, and a gateway record of their own."""

    urls: Mapping[str, ServiceUrls]
    gateway_record: Path

    async def audit(self) -> Report:
        urls = {service: urls.audit for service, urls in self.urls.items()}
        return await audit(Sources(urls, self.gateway_record), Limits(settle_s=0.0))

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[tuple[Any, Any, Any]]:
        """balance, coupon and payment serve; the order service is stopped."""
        async with AsyncExitStack() as exits:
            gateway = exits.enter_context(GatewaySimulator(self.gateway_record))
            payment = {
                "gateway_url": gateway.url,
                "gateway_secret_key": SecretStr(gateway.secret_key),
                **LONG_GATEWAY_LIMITS,
            }
            services: dict[str, tuple[type[Any], Any, Any, dict[str, Any]]] = {
                "balance": (BalanceSettings, build_balance, BalanceServiceStub, {}),
                "coupon": (CouponSettings, build_coupon, CouponServiceStub, {}),
                "payment": (PaymentSettings, build_payment, PaymentServiceStub, payment),
            }
            stubs = []
            for service, (settings, build, stub, special) in services.items():
                special |= {"database_url": self.urls[service].runtime, "redis_url": ""}
                running = replicas(1, settings, build, **special)
                addresses = await exits.enter_async_context(running)
                stubs.append(stub(await exits.enter_async_context(channel(*addresses))))
            balance, coupon, payments = stubs
            yield balance, coupon, payments


@pytest.fixture
def restored(
    databases: Databases, history: History, tmp_path: Path
) -> Iterator[Callable[..., Restored]]:
    """The state after these databases went back."""
    with ExitStack() as exits:

        def build(*services: str) -> Restored:
            urls = {}
            for service in SERVICES:
                template = (history.older if service in services else history.now)[service]
                name = fresh(f"test_restored_{service}_")
                server = databases.server
                urls[service] = server.create_database(name, service=service, template=template)
                exits.callback(server.drop_database, name)
            record = tmp_path / "gateway.sqlite3"
            with (
                closing(sqlite3.connect(history.gateway_record)) as source,
                closing(sqlite3.connect(record)) as copy,
            ):
                source.backup(copy)
            return Restored(urls, record)

        yield build


def differences(report: Report) -> set[str]:
    return {text for line in report.lines for text in line.differences}


async def test_without_a_restore_the_books_balance(restored: Callable[..., Restored]) -> None:
    assert differences(await restored().audit()) == set()


async def test_older_balance_is_put_right_by_calls_with_the_same_request_ids(
    restored: Callable[..., Restored], history: History
) -> None:
    books = restored("balance")
    missing = "KRW 4,000 recorded, and there is no deduction"
    assert differences(await books.audit()) == {
        f"order {each.order.order_id}: {missing}" for each in history.bought
    }
    async with books.clients() as (balance, _, _):
        await balance.ChargeBalance(charge(history.issued.user_id, 20_000, "newer"))
        for each in history.bought:
            order, step = each.order, each.step("deduct_balance")
            await balance.DeductBalance(
                deduct(order.user_id, BALANCE, step, order_id=order.order_id)
            )
            if each.cancelled_by:
                undo = f"{each.cancelled_by}:refund_deduction"
                await balance.RefundDeduction(refund(order.user_id, step, undo))
    assert differences(await books.audit()) == set()


async def test_older_coupons_are_put_right_but_for_those_that_were_issued_since(
    restored: Callable[..., Restored], history: History
) -> None:
    books = restored("coupon")
    missing = [
        f"order {each.order.order_id}: KRW 1,000 recorded, and there is no redemption"
        for each in history.bought
    ]
    assert differences(await books.audit()) == {*missing}
    paid, cancelled, newer = history.bought
    async with books.clients() as (_, coupon, _):
        for each in (paid, cancelled):
            order, step = each.order, each.step("redeem_coupon")
            coupon_id = each.paid_by.coupon_id
            redemption = redeem(
                coupon_id, order.user_id, step, order_id=order.order_id, amount=PRICE
            )
            await coupon.RedeemCoupon(redemption)
            if each.cancelled_by:
                undo = f"{each.cancelled_by}:restore_coupon"
                await coupon.RestoreCoupon(restore(coupon_id, order.user_id, step, undo))
        again = (await coupon.IssueCoupon(history.issued)).coupon
        assert again.coupon_id != newer.paid_by.coupon_id
    assert differences(await books.audit()) == {missing[history.bought.index(newer)]}


async def test_older_payments_are_confirmed_again_without_a_second_charge(
    restored: Callable[..., Restored], history: History
) -> None:
    books = restored("payment")
    before = differences(await books.audit())
    for each in history.bought:
        key = each.paid_by.payment_key
        assert f"order {each.order.order_id}: KRW 5,000 recorded, and there is no payment" in before
        assert any(text.startswith(f"key {key}: 5,000 captured") for text in before)
    async with books.clients() as (_, _, payment):
        for each in history.bought:
            order = each.order
            request = confirm(
                each.paid_by.payment_key,
                each.step("confirm_payment"),
                user_id=order.user_id,
                order_id=order.order_id,
                amount_minor=GATEWAY,
            )
            if each.cancelled_by:
                with refused("PAYMENT_CANCELLED"):
                    await payment.ConfirmPayment(request)
            else:
                confirmed = (await payment.ConfirmPayment(request)).payment
                assert confirmed.state == payment_pb2.Payment.STATE_CONFIRMED
    assert captured(books.gateway_record) == captured(history.gateway_record)
    after = differences(await books.audit())
    # A payment that is made again has a new id; the order keeps the one that it had. A refund that
    # Tally made before counts as one of somebody else.
    for each in history.bought:
        (named,) = [text for text in after if f"order {each.order.order_id}" in text]
        assert f"and not {each.order.payment_id}" in named
    _, cancelled, _ = history.bought
    (refunded,) = [text for text in after if f"key {cancelled.paid_by.payment_key}" in text]
    assert "5,000 refunded by Tally's calls, and 0 are recorded" in refunded
    assert len(after) == len(history.bought) + 1


async def test_older_orders_lose_their_sagas_whose_effects_are_given_back(
    restored: Callable[..., Restored], history: History
) -> None:
    """With identity, each effect is a difference: only the order service can have caused it."""
    books = restored("order")
    report = await books.audit()
    assert differences(report) == set()
    assert {*report.notes[Note.FOREIGN]} == {
        f"{effect} of {each.order.user_id}, request_id {each.step(step)}"
        for each in history.in_force
        for effect, step in (
            ("deduction of KRW 4,000", "deduct_balance"),
            ("redemption of KRW 1,000", "redeem_coupon"),
            ("payment of KRW 5,000", "confirm_payment"),
        )
    }
    async with books.clients() as (balance, coupon, payment):
        for each in history.in_force:
            user_id = each.order.user_id
            step, undo = each.step("deduct_balance"), fresh("restored")
            await asyncio.gather(
                balance.RefundDeduction(refund(user_id, step, undo)),
                coupon.RestoreCoupon(
                    restore(each.paid_by.coupon_id, user_id, each.step("redeem_coupon"), undo)
                ),
                payment.CancelPayment(cancel(each.step("confirm_payment"), undo, user_id=user_id)),
            )
    report = await books.audit()
    assert (differences(report), report.noted(Note.FOREIGN)) == (set(), 0)


async def test_all_databases_of_one_moment_agree_but_with_the_gateway(
    restored: Callable[..., Restored], history: History
) -> None:
    found = differences(await restored(*SERVICES).audit())
    keys = {each.paid_by.payment_key for each in history.bought}
    charges = {f"key {key}: 5,000 captured, and there is no such payment" for key in keys}
    assert charges <= found
    # The sums differ by just these charges.
    assert all(text.startswith("gateway KRW") for text in found - charges)


def captured(record: Path) -> list[tuple[str, int]]:
    """What the gateway has charged, by key."""
    with closing(sqlite3.connect(record)) as opened:
        query = (
            "SELECT payment_key, total_amount FROM payments WHERE approved_at IS NOT NULL"
            " ORDER BY payment_key"
        )
        return [*opened.execute(query)]
