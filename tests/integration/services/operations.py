"""Every operation of every service: a command, its Redis key, and calls that carry it out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import balance_service.locking
import balance_service.model
import coupon_service.locking
import coupon_service.use_cases.coupon
import order_service.locking
import payment_service.locking
import payment_service.model.payment_command
from balance_service.model import ChargeBalance, DeductBalance, RefundDeduction
from common.locking.strategy import Strategies
from common.money import Money
from coupon_service.model.campaign import CreateCampaign
from coupon_service.model.coupon import IssueCoupon, RedeemCoupon, RestoreCoupon
from coupon_service.model.share import IssueFromShare
from coupon_service.model.ticket import IssueTickets
from order_service.model.cart import ClearCart, SetCartItem
from order_service.model.order import CancelOrder, CreateOrder, ExpireOrder, Line, PayOrder
from order_service.model.product import CreateProduct, RestockProduct
from order_service.model.saga_command import (
    CloseSaga,
    NoteFailure,
    RenewLease,
    ResolveSaga,
    RetrySaga,
    RetrySagas,
    TakeOverSagas,
    WriteSaga,
)
from order_service.model.seat import AddSeats
from order_service.saga.journal import JournalCommand
from order_service.use_cases.order_batch import OrderCommand
from order_service.use_cases.product import ProductCommand
from payment_service.model.payment_command import (
    BeginConfirm,
    CancelPayment,
    ConfirmPayment,
    RecordOutcome,
    ResolvePayment,
)
from tally.order.v1 import order_pb2 as pb
from tests.support.balances import charge, deduct, refund
from tests.support.coupons import campaign, issue, redeem, restore
from tests.support.orders import cancel, create_product, fresh, pay, restock, set_item
from tests.support.payments import cancel as cancel_confirmation
from tests.support.payments import charged, confirm, until
from tests.support.seats import add_seats
from tests.support.stack import Stack
from tests.support.statements import recorded_transactions
from tests.support.tickets import lane_on, tickets_of

WON: Final = Money("KRW", 100)
ORDER, SAGA = pb.Order, pb.Saga

Calls = Callable[[], Awaitable[object]]
"""Calls that carry an operation out; they may have other transactions too."""


@dataclass(frozen=True)
class Operation:
    """One operation of a service, and how its row strategy shows."""

    command: type
    prepare: Callable[[Stack], Awaitable[Calls]]
    """Makes what the calls need."""
    table: str
    """The table whose rows the row strategy is about."""
    compared: str = "version"
    """The column that a conditional write compares."""
    sql: str = ""
    """Text in the operation's transaction that other transactions of the run do not have."""


# -- balance -------------------------------------------------------------------------------------


async def charge_balance(stack: Stack) -> Calls:
    user = await stack.user(100)
    return lambda: stack.balance.ChargeBalance(charge(user, 100, fresh()))


async def deduct_balance(stack: Stack) -> Calls:
    user = await stack.user(100)
    return lambda: stack.balance.DeductBalance(deduct(user, 100, fresh()))


async def refund_deduction(stack: Stack) -> Calls:
    user, deduction = await stack.user(100), fresh()
    await stack.balance.DeductBalance(deduct(user, 100, deduction))
    return lambda: stack.balance.RefundDeduction(refund(user, deduction, fresh()))


BALANCE: Final = [
    Operation(ChargeBalance, charge_balance, "accounts"),
    Operation(DeductBalance, deduct_balance, "accounts"),
    Operation(RefundDeduction, refund_deduction, "accounts"),
]

# -- coupon --------------------------------------------------------------------------------------


async def create_campaign(stack: Stack) -> Calls:
    return lambda: stack.coupon.CreateCampaign(campaign(fresh()))


async def issue_coupon(stack: Stack) -> Calls:
    made = await stack.coupon.CreateCampaign(campaign(fresh()))
    return lambda: stack.coupon.IssueCoupon(issue(made.campaign.campaign_id, fresh()))


async def issue_from_share(stack: Stack) -> Calls:
    made = await stack.coupon.CreateCampaign(campaign(fresh(), shares=4))
    return lambda: stack.coupon.IssueCoupon(issue(made.campaign.campaign_id, fresh()))


async def issue_tickets(stack: Stack) -> Calls:
    """Without a queue: what its consumer submits."""
    made = await stack.coupon.CreateCampaign(campaign(fresh(), queue_only=True))
    campaign_id = made.campaign.campaign_id

    async def calls() -> None:
        async with lane_on(stack.databases.urls["coupon"].runtime, stack.redis_url) as lane:
            await lane.submit(tickets_of(campaign_id, [fresh()]))

    return calls


async def redeem_coupon(stack: Stack) -> Calls:
    user = fresh()
    coupon_id = await stack.coupon_of(user)
    return lambda: stack.coupon.RedeemCoupon(redeem(coupon_id, user, fresh()))


async def restore_coupon(stack: Stack) -> Calls:
    user, redemption = fresh(), fresh()
    coupon_id = await stack.coupon_of(user)
    await stack.coupon.RedeemCoupon(redeem(coupon_id, user, redemption))
    return lambda: stack.coupon.RestoreCoupon(restore(coupon_id, user, redemption, fresh()))


COUPON: Final = [
    Operation(CreateCampaign, create_campaign, "campaigns"),
    Operation(IssueCoupon, issue_coupon, "campaigns"),
    Operation(IssueFromShare, issue_from_share, "campaign_shares"),
    Operation(IssueTickets, issue_tickets, "campaigns"),
    Operation(RedeemCoupon, redeem_coupon, "coupons", "redeem_request_id"),
    Operation(RestoreCoupon, restore_coupon, "coupons", "redeem_request_id"),
]

# -- payment -------------------------------------------------------------------------------------


async def confirm_payment(stack: Stack) -> Calls:
    return lambda: stack.payment.ConfirmPayment(confirm(fresh("key"), fresh()))


async def cancel_payment(stack: Stack) -> Calls:
    confirmation = fresh()
    await stack.payment.ConfirmPayment(confirm(fresh("key"), confirmation))
    return lambda: stack.payment.CancelPayment(cancel_confirmation(confirmation, fresh()))


async def resolve_payment(stack: Stack) -> Calls:
    paid = (await stack.payment.ConfirmPayment(confirm(fresh("key"), fresh()))).payment
    return lambda: stack.payment.ResolvePayment(charged(paid.payment_id, fresh()))


PAYMENT: Final = [
    Operation(ConfirmPayment, confirm_payment, "payments", sql="INTO payments"),
    Operation(BeginConfirm, confirm_payment, "payments", sql="UPDATE payments"),
    Operation(RecordOutcome, confirm_payment, "payments", sql="UPDATE payments"),
    Operation(ResolvePayment, resolve_payment, "payments"),
    Operation(CancelPayment, cancel_payment, "payments"),
]

# -- order ---------------------------------------------------------------------------------------


async def create_a_product(stack: Stack) -> Calls:
    return lambda: stack.shop.products.CreateProduct(create_product(fresh(), 1))


async def restock_product(stack: Stack) -> Calls:
    product_id = await stack.shop.product(1)
    return lambda: stack.shop.products.RestockProduct(restock(product_id, 1, fresh()))


async def add_seats_to_a_product(stack: Stack) -> Calls:
    product_id = await stack.shop.product(0)
    return lambda: stack.shop.products.AddSeats(add_seats(product_id, ["A-1"], fresh()))


async def change_cart(stack: Stack) -> Calls:
    user, product_id = fresh(), await stack.shop.product(1)
    await stack.shop.carts.SetCartItem(set_item(user, product_id, 1))

    async def calls() -> None:
        await stack.shop.carts.SetCartItem(set_item(user, product_id, 2, expected_version=1))
        await stack.shop.carts.ClearCart(pb.ClearCartRequest(user_id=user, expected_version=2))

    return calls


async def create_order(stack: Stack) -> Calls:
    product_id = await stack.shop.product(1)
    return lambda: stack.shop.order(fresh(), {product_id: 1})


async def cancel_order(stack: Stack) -> Calls:
    order = await stack.order(await stack.user())
    return lambda: stack.shop.orders.CancelOrder(cancel(order, fresh()))


async def expire_order(stack: Stack) -> Calls:
    order = await stack.order(await stack.user())
    overdue = f"UPDATE orders SET expire_time = now() WHERE order_id = '{order.order_id}'"

    async def calls() -> None:
        await stack.databases.sql("order", overdue)
        await stack.until(order, ORDER.STATE_EXPIRED)

    return calls


async def pay_order(stack: Stack) -> Calls:
    order = await stack.order(await stack.user(10_000))
    return lambda: stack.pay(pay(order))


async def pay_slowly(stack: Stack) -> Calls:
    """Until the lease has been renewed, the deduction is not made."""
    order = await stack.order(await stack.user(10_000))
    gate = stack.wire.hold("deduct_balance")

    async def calls() -> None:
        with recorded_transactions() as transactions:
            paying = asyncio.create_task(stack.pay(pay(order)))
            await gate.reached()
            while not any("AS renewed" in text for each in transactions for text in each):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        gate.open()
        await paying

    return calls


async def retry_saga(stack: Stack) -> Calls:
    order, _, saga = await stack.parked("deduct_balance:undo")

    async def calls() -> None:
        await stack.sagas.RetrySaga(pb.RetrySagaRequest(saga_id=saga.saga_id, request_id=fresh()))
        await stack.until_saga(order, SAGA.STATE_COMPENSATED)

    return calls


async def retry_sagas(stack: Stack) -> Calls:
    order, _, _ = await stack.parked("deduct_balance:undo")

    async def calls() -> None:
        await stack.sagas.RetrySagas(pb.RetrySagasRequest(request_id=fresh()))
        await stack.until_saga(order, SAGA.STATE_COMPENSATED)

    return calls


async def note_failure(stack: Stack) -> Calls:
    order, request = await stack.order_paid_by_all("no_refund_")
    await stack.pay(request)

    async def calls() -> None:
        cancelling = asyncio.ensure_future(stack.cancel(cancel(order, fresh())))
        refused = "REFUND_REFUSED NOT_CANCELABLE_PAYMENT"
        await until(lambda: stack.shop.get(order), lambda now: now.failure_reason == refused)
        cancelling.cancel()

    return calls


async def resolve_saga(stack: Stack) -> Calls:
    _, _, saga = await stack.parked("deduct_balance:undo")
    return lambda: stack.sagas.ResolveSaga(
        pb.ResolveSagaRequest(saga_id=saga.saga_id, reason="by hand", request_id=fresh())
    )


ORDER_OPERATIONS: Final = [
    Operation(CreateProduct, create_a_product, "products"),
    Operation(RestockProduct, restock_product, "products"),
    Operation(AddSeats, add_seats_to_a_product, "products"),
    Operation(SetCartItem, change_cart, "carts", sql="INTO cart_items"),
    Operation(ClearCart, change_cart, "carts", sql="FROM cart_items"),
    Operation(CreateOrder, create_order, "products"),
    Operation(CancelOrder, cancel_order, "orders", "state"),
    Operation(ExpireOrder, expire_order, "orders", "state"),
    Operation(PayOrder, pay_order, "orders", "state", sql="INTO sagas"),
    Operation(CloseSaga, pay_order, "orders", "state", sql="AS written"),
    Operation(WriteSaga, pay_order, "sagas", "epoch", sql="AS written"),
    Operation(RenewLease, pay_slowly, "sagas", "epoch", sql="AS renewed"),
    Operation(TakeOverSagas, retry_saga, "sagas", sql="due AS"),
    Operation(NoteFailure, note_failure, "orders", "state", sql="AS wanted"),
    Operation(RetrySaga, retry_saga, "sagas", sql="INTO answers"),
    Operation(RetrySagas, retry_sagas, "sagas", sql="waiting AS"),
    Operation(ResolveSaga, resolve_saga, "sagas"),
]

# -- all -----------------------------------------------------------------------------------------

SERVICES: Final[dict[str, tuple[Strategies, list[Operation]]]] = {
    "balance": (balance_service.locking.STRATEGIES, BALANCE),
    "coupon": (coupon_service.locking.STRATEGIES, COUPON),
    "payment": (payment_service.locking.STRATEGIES, PAYMENT),
    "order": (order_service.locking.STRATEGIES, ORDER_OPERATIONS),
}
LANES: Final[dict[str, tuple[object, ...]]] = {
    "balance": (balance_service.model.Command,),
    "coupon": (
        *(CreateCampaign, IssueCoupon, IssueFromShare, IssueTickets),
        coupon_service.use_cases.coupon.Command,
    ),
    "payment": (payment_service.model.payment_command.Command,),
    "order": (OrderCommand, ProductCommand, JournalCommand),
}
"""The types of commands that each service's lanes take."""
OUTSIDE_LANES: Final = {"order": {SetCartItem, ClearCart, TakeOverSagas, RetrySagas}}
REDIS_KEYS: Final[dict[str, dict[object, tuple[str, ...]]]] = {
    "balance": {
        ChargeBalance("ann", WON, "c"): ("balance:user:ann",),
        DeductBalance("ann", WON, "d", None): ("balance:user:ann",),
        RefundDeduction("ann", "d", "r"): ("balance:user:ann",),
    },
    "coupon": {
        IssueCoupon("c", "ann", "i"): ("coupon:issue:c",),
        IssueFromShare("c", "ann", "i", 7): ("coupon:issue:c:7",),
        IssueTickets("c", 1, ()): ("coupon:issue:c",),
    },
    "payment": {ConfirmPayment("o", "ann", WON, "key", "c", "h"): ("payment:key:key",)},
    "order": {
        CreateOrder("ann", (Line("p", 1),), "o"): ("order:create:user:ann",),
        CreateOrder("ann", (Line("p", 2, ("A 1", "B")), Line("q", 1)), "o"): (
            *("order:create:user:ann", "seat:{p}:A 1", "seat:{p}:B"),
        ),
    },
}
"""Example commands and their Redis keys."""
