"""Customers of every kind, each of whom repeats its calls until the reply is final.

``Customers.finished`` keeps the replies to each, for the comparison with the books.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from common.errors import Code, Refusal
from common.rpc.status import from_rpc_error
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.coupon.v1 import coupon_pb2
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.order.v1 import order_pb2 as pb
from tally.payment.v1 import payment_pb2
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub
from tally_client.rpc.channels import open_channel
from tests.faults.stack import FaultyStack, running
from tests.integration.local.test_runner import free_base_port
from tests.support.balances import charge
from tests.support.coupons import campaign, get_ticket, issue, queue
from tests.support.orders import (
    Shop,
    cancel,
    create_order,
    create_product,
    pay,
    restock,
    set_item,
)
from tests.support.seats import add_seats, labels, order_seats

PRICE: Final = 10_000
NO_REFUND: Final = "no_refund_"
ATTEMPT_S: Final = 6.0
PATIENCE_S: Final = 25.0
_PAUSE_S: Final = 0.2
_DEFECT: Final = Code.INTERNAL
"""It leaves open whether the call had its effect: it is repeated."""
_numbers = itertools.count()
Repeat = Callable[[Any, Any], Awaitable[Any]]
"""Makes a call until the reply is final: its response, or None if none came in time. Raises a
definite Refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a customer does. An empty ``key`` means no part through the gateway."""

    name: str
    funds: int = 6_000
    coupon: bool = False
    balance: int = 0
    key: str = ""
    pays: bool = True
    cancels: bool = False
    waits: bool = False
    """The order is left to expire."""


KINDS: Final = (
    Kind(name="by all", coupon=True, balance=4_000, key="key_"),
    Kind(name="by balance", funds=20_000, balance=PRICE),
    Kind(name="cancelled", coupon=True, balance=4_000, key="key_", cancels=True),
    Kind(name="declined", coupon=True, balance=4_000, key="decline_"),
    Kind(name="no funds", funds=100, coupon=True, balance=4_000, key="key_"),
    Kind(name="charged, no reply", balance=4_000, key="timeout_after_charge_"),
    Kind(name="charged, 500", coupon=True, key="error_after_charge_"),
    Kind(name="500, declined", coupon=True, balance=1_000, key="error_"),
    Kind(name="deposit", coupon=True, balance=1_000, key="deposit_"),
    Kind(name="refund refused", balance=4_000, key=NO_REFUND, cancels=True),
    Kind(name="not paid, cancelled", pays=False, cancels=True),
    Kind(name="left to expire", pays=False, waits=True),
)


@dataclass(slots=True)
class Replies:
    """The last replies about a customer's order; '' where there was none that is final."""

    kind: Kind
    order_id: str
    paid: str = ""
    """PAID, or the reason of a refusal."""
    cancelled: str = ""


@dataclass
class Customers:
    """The customers of one stack."""

    shops: Sequence[Shop]
    """One for each replica of the order service."""
    shop: Shop
    """All replicas, in turns."""
    balance: Any
    coupon: Any
    payment: Any
    campaign_id: str = ""
    split_campaign_id: str = ""
    """A campaign with shares."""
    queued_campaign_id: str = ""
    product_id: str = ""
    orders: int = 0
    repeat: Repeat = field(default_factory=lambda: repeated)
    """How every call is made; it may be replaced after ``open``."""
    finished: list[Replies] = field(default_factory=list)
    rounds: list[asyncio.Task[None]] = field(default_factory=list)
    """Those that have not been awaited."""

    async def open(self) -> None:
        """Two campaigns and a product for everyone."""
        made, split = [
            await self._insist(
                self.coupon.CreateCampaign,
                campaign(_fresh("campaign"), quantity=10**6, shares=shares),
            )
            for shares in (1, 8)
        ]
        product = await self._insist(
            self.shop.products.CreateProduct, create_product(_fresh("p"), 10**6, price=PRICE)
        )
        queued = await self._insist(
            self.coupon.CreateCampaign,
            campaign(_fresh("campaign"), quantity=10**6, queue_only=True),
        )
        assert made is not None
        assert split is not None
        assert queued is not None
        assert product is not None
        self.campaign_id = made.campaign.campaign_id
        self.split_campaign_id = split.campaign.campaign_id
        self.queued_campaign_id = queued.campaign.campaign_id
        self.product_id = product.product.product_id

    async def round(self, shop: Shop, kinds: Sequence[Kind] = KINDS) -> None:
        """One customer of each kind, at once."""
        async with asyncio.TaskGroup() as group:
            for kind in kinds:
                group.create_task(self.serve(kind, shop))

    async def leave(self) -> None:
        """Wait until every customer has a final reply, or has gone away."""
        ended = await asyncio.gather(*self.rounds, return_exceptions=True)
        self.rounds.clear()
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def serve(self, kind: Kind, shop: Shop) -> None:
        """Everything that one customer does."""
        user = _fresh("user")
        coupon_id = None
        if await self._insist(self.balance.ChargeBalance, charge(user, kind.funds, "c")) is None:
            return
        if kind.coupon:
            issued = await self._insist(self.coupon.IssueCoupon, issue(self.campaign_id, user))
            if issued is None:
                return
            coupon_id = issued.coupon.coupon_id
        request = create_order(user, {self.product_id: 1}, "o")
        created = await self._insist(shop.orders.CreateOrder, request)
        if created is None:
            return
        order: pb.Order = created.order
        self.orders += 1
        replies = Replies(kind, order.order_id)
        if kind.pays:
            paying = pay(
                order,
                "p",
                **({"coupon_id": coupon_id} if coupon_id else {}),
                **({"balance": kind.balance} if kind.balance else {}),
                **({"payment_key": f"{kind.key}{order.order_id}"} if kind.key else {}),
            )
            replies.paid = await self._ask(shop.orders.PayOrder, paying)
        paid = replies.paid == "PAID"
        if kind.cancels or not (paid or kind.waits):
            replies.cancelled = await self._ask(shop.orders.CancelOrder, cancel(order, "x"))
        self.finished.append(replies)

    async def settle_refunds(self) -> None:
        """For ever: refund by other means what the gateway does not refund, and record it."""
        while True:
            for state in (pb.Saga.STATE_NEEDS_ATTENTION, pb.Saga.STATE_RESOLVING):
                asked = pb.ListSagasRequest(state=state)
                listed = await self._insist(self.shop.sagas.ListSagas, asked)
                for saga in listed.sagas if listed is not None else ():
                    if "REFUND_REFUSED" in saga.last_error:
                        await self._settle_refund(saga)
            await asyncio.sleep(_PAUSE_S)

    async def _settle_refund(self, saga: pb.Saga) -> None:
        wanted = payment_pb2.ListPaymentsRequest(user_id=saga.user_id, order_id=saga.order_id)
        listed = await self._insist(self.payment.ListPayments, wanted)
        for payment in listed.payments if listed is not None else ():
            if not payment.refund_refusal_code:
                continue
            request = payment_pb2.ResolvePaymentRequest(
                payment_id=payment.payment_id,
                outcome=payment_pb2.ResolvePaymentRequest.OUTCOME_REFUNDED_OUTSIDE,
                amount=payment.amount,
                reason="in cash",
                request_id=f"refund-{payment.payment_id}",
            )
            await self._insist(self.payment.ResolvePayment, request)

    async def keep_shop(self, shop: Shop) -> None:
        """What is done beside orders: campaign, product, stock, cart, an operator's calls."""
        user = _fresh("keeper")
        await self._insist(self.coupon.CreateCampaign, campaign(_fresh("campaign")))
        await self._insist(self.coupon.IssueCoupon, issue(self.split_campaign_id, user))
        await self._queue_for_a_coupon(user)
        made = await self._insist(
            shop.products.CreateProduct, create_product(_fresh("p"), 5, price=PRICE)
        )
        if made is not None:
            product_id = made.product.product_id
            await self._insist(shop.products.RestockProduct, restock(product_id, 5, _fresh("r")))
            await self._insist(shop.carts.SetCartItem, set_item(user, product_id, 1))
        await self._sell_seats(shop, user)
        retry_all = pb.RetrySagasRequest(request_id=_fresh("retry"))
        await self._insist(shop.sagas.RetrySagas, retry_all)
        for state in (None, pb.Saga.STATE_NEEDS_ATTENTION):
            asked = pb.ListSagasRequest(page_size=1, state=state)
            listed = await self._insist(shop.sagas.ListSagas, asked)
            for saga in listed.sagas if listed is not None else ():
                retry = pb.RetrySagaRequest(saga_id=saga.saga_id, request_id=_fresh("retry"))
                await self._insist(shop.sagas.RetrySaga, retry)
                # Refused if it does not need attention; that is a transaction all the same.
                resolve = pb.ResolveSagaRequest(
                    saga_id=saga.saga_id, reason="none", request_id=_fresh("resolve")
                )
                await self._insist(shop.sagas.ResolveSaga, resolve)

    async def _queue_for_a_coupon(self, user: str) -> None:
        """A ticket, until it is issued or refused, and its call again."""
        request = queue(self.queued_campaign_id, user)
        for _ in range(2):
            queued = await self._insist(self.coupon.QueueCoupon, request)
            while queued is not None and queued.ticket.state == coupon_pb2.Ticket.STATE_WAITING:
                await asyncio.sleep(_PAUSE_S)
                queued = await self._insist(self.coupon.GetTicket, get_ticket(queued.ticket))

    async def _sell_seats(self, shop: Shop, user: str) -> None:
        """A product with seats, and an order of one of them, which is cancelled."""
        made = await self._insist(
            shop.products.CreateProduct, create_product(_fresh("show"), 0, price=PRICE)
        )
        if made is None:
            return
        show = made.product.product_id
        await self._insist(shop.products.AddSeats, add_seats(show, labels(2), _fresh("s")))
        request = order_seats(user, {show: labels(1)}, _fresh("o"))
        ordered = await self._insist(shop.orders.CreateOrder, request)
        if ordered is not None:
            await self._insist(shop.orders.CancelOrder, cancel(ordered.order, _fresh("c")))

    async def _ask(self, method: Any, request: Any) -> str:
        """The state of the order in the response, or the reason of a refusal; '' if neither."""
        try:
            response = await self.repeat(method, request)
        except Refusal as refusal:
            return refusal.reason
        return "" if response is None else pb.Order.State.Name(response.order.state)[6:]

    async def _insist(self, method: Any, request: Any) -> Any:
        """The response; None if the call was refused, or not answered in time."""
        try:
            return await self.repeat(method, request)
        except Refusal:
            return None


async def repeated(method: Any, request: Any) -> Any:
    """The response to a call that is repeated until the reply is final.

    None if that does not happen in PATIENCE_S. Raises a definite refusal.
    """
    until_s = asyncio.get_running_loop().time() + PATIENCE_S
    while asyncio.get_running_loop().time() < until_s:
        try:
            return await method(request, timeout=ATTEMPT_S)
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            if refusal.reason and refusal.retry_after_s is None and refusal.code is not _DEFECT:
                raise refusal from None
        await asyncio.sleep(_PAUSE_S)
    return None


def _fresh(prefix: str) -> str:
    return f"{prefix}-{next(_numbers)}"


@asynccontextmanager
async def customers(stack: FaultyStack) -> AsyncIterator[Customers]:
    """The customers of a stack that has just started."""
    async with AsyncExitStack() as exits:

        async def opened(addresses: Sequence[str]) -> grpc.aio.Channel:
            channel = open_channel(",".join(addresses))
            exits.push_async_callback(channel.close)
            return channel

        orders = stack.plan.addresses("order")
        found = Customers(
            [Shop.at(await opened([address])) for address in orders],
            Shop.at(await opened(orders)),
            BalanceServiceStub(await opened(stack.plan.addresses("balance"))),
            CouponServiceStub(await opened(stack.plan.addresses("coupon"))),
            PaymentServiceStub(await opened(stack.plan.addresses("payment"))),
        )
        await found.open()
        yield found


@asynccontextmanager
async def fresh_stack(
    settings: Mapping[str, str],
) -> AsyncIterator[tuple[FaultyStack, Customers]]:
    """A new stack and its customers. Enter it in the main thread."""
    with (
        tempfile.TemporaryDirectory(prefix="tally-faults-") as directory,
        running(Path(directory) / "data", free_base_port(), settings, FaultyStack) as stack,
    ):
        async with customers(stack) as crowd:
            yield stack, crowd
