"""All four services in the test's own process, on databases of their own, with a real gateway.

``Wire`` is between the order service and the others. It loses calls and replies, and keeps calls
back to deliver them late, by the step that is in a call's request_id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio
from pydantic import SecretStr

from balance_service.settings import BalanceSettings
from balance_service.wiring import build as build_balance
from common.errors import Code, RemoteRefusal
from common.rpc.client import ServiceClient
from coupon_service.settings import CouponSettings
from coupon_service.wiring import build as build_coupon
from deploy.audit.sources import Sources
from deploy.local.gateway.simulator import GatewaySimulator
from order_service.settings import OrderSettings
from order_service.wiring import build as build_order
from payment_service.settings import PaymentSettings
from payment_service.wiring import build as build_payment
from tally.balance.v1.balance_pb2 import BatchWriteRequest
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.coupon.v1 import coupon_pb2
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.order.v1 import order_pb2 as pb
from tally.order.v1.order_pb2_grpc import SagaServiceStub
from tally.payment.v1 import payment_pb2
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub
from tests.support.balances import available, charge
from tests.support.coupons import get_coupon, issued
from tests.support.databases import Databases, StackDatabases
from tests.support.gates import Gates
from tests.support.orders import Shop, fresh, pay
from tests.support.payments import LONG_GATEWAY_LIMITS, until
from tests.support.replicas import channel, replicas
from tests.support.time_limits import LONG_S

NOTHING_TAKEN: Final = (20_000, 0, coupon_pb2.Coupon.STATE_ISSUED)
ALL_TAKEN: Final = (16_000, 5_000, coupon_pb2.Coupon.STATE_REDEEMED)
"""What ``Stack.taken`` returns before and after the payment of ``order_paid_by_all``."""


class Wire(Gates):
    """The calls of the order service to the others, and faults on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: dict[str, list[str]] = {}
        """By step or ``<step>:undo``; each happens once. ``lost``: the call never arrives.
        ``no reply``: its reply is lost. ``late``: as lost, until ``deliver_late``. Any other word
        is the reason of a refusal."""
        self.calls: list[str] = []
        """Every call that was made, by step."""
        self._kept: list[Callable[[], Any]] = []

    @property
    def undos(self) -> list[str]:
        return [call for call in self.calls if call.endswith(":undo")]

    async def deliver_late(self) -> list[Any]:
        """Deliver the calls that were kept back; their refusals or responses."""
        kept, self._kept = self._kept, []
        return await asyncio.gather(*(call() for call in kept), return_exceptions=True)

    def reset(self) -> None:
        """Forget the faults and calls of the test before."""
        self.faults.clear()
        self.calls.clear()
        self._kept.clear()
        self.open_all()

    def cut_in(self, patch: pytest.MonkeyPatch) -> None:
        """Let every call of the order service pass through here."""
        direct = ServiceClient.call

        async def call(client: Any, method: Any, request: Any, **options: Any) -> Any:
            def send() -> Any:
                return direct(client, method, request, **options)

            if isinstance(request, BatchWriteRequest):
                return await self._send_shared(send, request)
            # A read has no request_id.
            request_id = getattr(request, "request_id", "")
            return await (self._send(send, request_id) if request_id else send())

        patch.setattr(ServiceClient, "call", call)

    async def _send_shared(self, call: Callable[[], Any], request: BatchWriteRequest) -> Any:
        """Several deductions in one call. If one is to be held or to fail, each has its own."""
        steps = [_step_of(item.deduct.request_id) for item in request.items]
        if not {*self.faults, *self._gates}.isdisjoint(steps):
            raise RemoteRefusal(Code.UNKNOWN, "", "as of a service without the method", {})
        self.calls += steps
        return await call()

    async def _send(self, call: Callable[[], Any], request_id: str) -> Any:
        step = _step_of(request_id)
        self.calls.append(step)
        await self.pass_through(step)
        faults = self.faults.get(step)
        if not faults:
            return await call()
        fault = faults.pop(0)
        if fault == "no reply":
            await call()
        elif fault == "late":
            self._kept.append(call)
        elif fault != "lost":
            raise RemoteRefusal(Code.FAILED_PRECONDITION, fault, "made up", {"made": "up"})
        raise RemoteRefusal(Code.UNAVAILABLE, "", "the connection was reset", {})


def _step_of(request_id: str) -> str:
    return request_id.partition(":")[2]


@dataclass
class Stack:
    """A client of all services."""

    shops: list[Shop]
    """One for each replica of the order service."""
    sagas: Any
    balance: Any
    coupon: Any
    payment: Any
    gateway: GatewaySimulator
    databases: StackDatabases
    wire: Wire
    peers: dict[str, list[str]]
    """The addresses of the other services."""
    order_addresses: list[str]
    redis_url: str

    @property
    def shop(self) -> Shop:
        return self.shops[0]

    async def user(self, available: int = 0) -> str:
        """A new user with this many won in the account."""
        user_id = fresh("user")
        if available:
            await self.balance.ChargeBalance(charge(user_id, available, fresh("c")))
        return user_id

    async def coupon_of(self, user_id: str, **fields: Any) -> str:
        """A new coupon of 1,000 won, or another."""
        return (await issued(self.coupon, user_id, fresh("campaign"), **fields)).coupon_id

    async def order(self, user_id: str, amount: int = 10_000) -> pb.Order:
        """A new order of two items that cost ``amount`` together."""
        product_id = await self.shop.product(5, price=amount // 2)
        return await self.shop.order(user_id, {product_id: 2})

    async def order_paid_by_all(self, prefix: str = "key") -> tuple[pb.Order, pb.PayOrderRequest]:
        """A new order, and its payment by coupon, by 4,000 of 20,000 won, and by gateway."""
        user_id = await self.user(20_000)
        order, coupon_id = await self.order(user_id), await self.coupon_of(user_id)
        key = fresh(prefix)
        return order, pay(order, coupon_id=coupon_id, balance=4_000, payment_key=key)

    async def pay(self, request: pb.PayOrderRequest, replica: int = 0) -> Any:
        return await self.shops[replica].orders.PayOrder(request, timeout=LONG_S)

    async def cancel(self, request: pb.CancelOrderRequest, replica: int = 0) -> Any:
        return await self.shops[replica].orders.CancelOrder(request, timeout=LONG_S)

    async def available(self, user_id: str) -> int:
        return await available(self.balance, user_id)

    async def coupon_state(self, coupon_id: str, user_id: str) -> int:
        response = await self.coupon.GetCoupon(get_coupon(coupon_id, user_id))
        return int(response.coupon.state)

    async def taken(self, request: pb.PayOrderRequest) -> tuple[int, int, int]:
        """What the user has left, what the gateway has charged, and the state of the coupon."""
        return (
            await self.available(request.user_id),
            self.charged(request.payment_key),
            await self.coupon_state(request.coupon_id, request.user_id),
        )

    async def parked(self, step: str) -> tuple[pb.Order, pb.PayOrderRequest, pb.Saga]:
        """A saga that needs attention, and whose step would be tried again in an hour."""
        undo = step.endswith(":undo")
        order, request = await self.order_paid_by_all("decline_" if undo else "key")
        self.wire.faults[step] = ["lost"] * 1_000
        paying = asyncio.ensure_future(self.pay(request))
        await self.until(order, pb.Order.STATE_PAYING)
        await self.until_saga(order, pb.Saga.STATE_NEEDS_ATTENTION)
        paying.cancel()
        await self.postpone(order)
        del self.wire.faults[step]
        return order, request, await self.saga(order)

    async def postpone(self, order: pb.Order) -> None:
        """Let the order's saga, which waits, wait for an hour."""
        in_an_hour = "now() + interval '1 hour'"
        steps = (
            "(SELECT jsonb_agg(jsonb_set(step, '{next_attempt_time}', to_jsonb("
            f"{in_an_hour}))) FROM jsonb_array_elements(steps) AS step)"
        )
        await until(
            lambda: self.databases.sql(
                "order",
                f"UPDATE sagas SET lease_until = {in_an_hour}, next_attempt_time = {in_an_hour},"
                f" steps = {steps} WHERE order_id = '{order.order_id}' AND owner IS NULL"
                " AND state = 'NEEDS_ATTENTION' RETURNING saga_id",
            ),
            bool,
        )

    async def saga(self, order: pb.Order) -> pb.Saga:
        """The order's newest saga."""
        response = await self.sagas.GetSaga(pb.GetSagaRequest(order_id=order.order_id))
        assert isinstance(response.saga, pb.Saga)
        return response.saga

    async def until(self, order: pb.Order, *states: int) -> pb.Order:
        """Wait until the order is in one of these states."""
        return await until(lambda: self.shop.get(order), lambda now: now.state in states)

    async def until_saga(self, order: pb.Order, *states: int) -> pb.Saga:
        """Wait until the order's newest saga is in one of these states."""
        return await until(lambda: self.saga(order), lambda now: now.state in states)

    async def expire_lease(self, order: pb.Order) -> None:
        """As if the saga's replica had been silent for longer than the lease."""
        await self.databases.sql(
            "order",
            "UPDATE sagas SET lease_until = now() - interval '1 second'"
            f" WHERE order_id = '{order.order_id}'",
        )

    async def payments(self, order: pb.Order) -> list[payment_pb2.Payment]:
        request = payment_pb2.ListPaymentsRequest(user_id=order.user_id, order_id=order.order_id)
        return list((await self.payment.ListPayments(request)).payments)

    def charged(self, payment_key: str) -> int:
        """What the gateway has charged for a key and not paid back, by its own record."""
        payment = (self.gateway.charges().get(payment_key) or {}).get("payment")
        return int(payment["balanceAmount"]) if payment and payment["approvedAt"] else 0


def sources_of(stack: Stack) -> Sources:
    """Where the audit reads the stack's books, without the gateway's side."""
    return Sources({service: urls.audit for service, urls in stack.databases.urls.items()})


# -- fixtures, imported by conftests -------------------------------------------------------------


@pytest.fixture(scope="module")
def stack_options() -> dict[str, Any]:
    """The order service's settings; a module may have its own."""
    return {}


@pytest.fixture(scope="module")
def stack_databases(databases: Databases, redis_url: str) -> Iterator[StackDatabases]:
    """Fresh databases for each value of ``redis_url``."""
    with databases.clone_all() as cloned:
        yield cloned


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    stack_databases: StackDatabases,
    gateway: GatewaySimulator,
    redis_url: str,
    stack_options: dict[str, Any],
) -> AsyncIterator[Stack]:
    """One stack for a module: tests have users, products and orders of their own.

    Two replicas of the order service, one of each other. Only the second looks for due sagas, so
    that a test knows who takes over.
    """
    wire = Wire()
    with pytest.MonkeyPatch.context() as patch:
        wire.cut_in(patch)
        async with running_stack(
            stack_databases, gateway, redis_url, wire, **stack_options
        ) as running:
            yield running


@pytest.fixture(autouse=True)
def no_faults(request: pytest.FixtureRequest) -> None:
    """Each test begins without the faults and calls of the test before."""
    if "stack" in request.fixturenames:
        request.getfixturevalue("stack").wire.reset()


@asynccontextmanager
async def running_stack(
    databases: StackDatabases,
    gateway: GatewaySimulator,
    redis_url: str,
    wire: Wire,
    *,
    orders: int = 2,
    payment: dict[str, Any] = LONG_GATEWAY_LIMITS,
    **settings: Any,
) -> AsyncIterator[Stack]:
    """The whole stack; ``payment`` are the payment service's settings, the rest the order's."""
    payment = {
        "gateway_url": gateway.url,
        "gateway_secret_key": SecretStr(gateway.secret_key),
        "resolve_interval_s": 0.1,
        **payment,
    }
    others: dict[str, tuple[type[Any], Any, dict[str, Any]]] = {
        "balance": (BalanceSettings, build_balance, {}),
        "coupon": (CouponSettings, build_coupon, {}),
        "payment": (PaymentSettings, build_payment, payment),
    }
    async with AsyncExitStack() as stack:
        peers = {}
        for service, (settings_type, build, special) in others.items():
            special |= {"database_url": databases.urls[service].runtime, "redis_url": redis_url}
            running = replicas(1, settings_type, build, **special)
            peers[service] = await stack.enter_async_context(running)
        addresses = await stack.enter_async_context(
            order_replicas(orders, databases, peers, redis_url, **settings)
        )

        async def opened(addresses: list[str]) -> grpc.aio.Channel:
            return await stack.enter_async_context(channel(*addresses))

        yield Stack(
            [Shop.at(await opened([address])) for address in addresses],
            SagaServiceStub(await opened(addresses)),
            BalanceServiceStub(await opened(peers["balance"])),
            CouponServiceStub(await opened(peers["coupon"])),
            PaymentServiceStub(await opened(peers["payment"])),
            gateway,
            databases,
            wire,
            peers,
            addresses,
            redis_url,
        )


@asynccontextmanager
async def order_replicas(
    count: int,
    databases: StackDatabases,
    peers: dict[str, list[str]],
    redis_url: str,
    **settings: Any,
) -> AsyncIterator[list[str]]:
    """Replicas of the order service, of which only the last looks for due sagas."""
    settings = {
        "database_url": databases.urls["order"].runtime,
        "redis_url": redis_url,
        "saga_backoff_max_s": 0.2,
        "saga_lease_s": LONG_S,
        "pay_within_s": LONG_S,
        **{f"{service}_address": ",".join(addresses) for service, addresses in peers.items()},
        **settings,
    }
    async with AsyncExitStack() as stack:
        addresses: list[str] = []
        for number in range(count):
            settings["saga_sweep_interval_s"] = 0.1 if number == count - 1 else 60.0
            running = replicas(1, OrderSettings, build_order, **settings)
            addresses += await stack.enter_async_context(running)
        yield addresses
