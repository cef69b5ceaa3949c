"""Every operation of every service: a command, its Redis key, and calls that carry it out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import balance_service.locking
import balance_service.model
import coupon_service.locking
import order_service.locking
import payment_service.locking
import payment_service.model
from balance_service.model import ChargeBalance, DeductBalance, RefundDeduction
from common.locking.strategy import Strategies
from common.money import Money
from coupon_service.model.campaign import CreateCampaign
from coupon_service.model.coupon import IssueCoupon, RedeemCoupon, RestoreCoupon
from order_service.model.cart import ClearCart, SetCartItem
from order_service.model.order import CancelOrder, CreateOrder, ExpireOrder, Line, PayOrder
from order_service.model.product import CreateProduct, RestockProduct
from order_service.model.saga_command import (
    CloseSaga,
    RenewLease,
    ResolveSaga,
    RetrySaga,
    TakeOverSagas,
    WriteSaga,
)
from order_service.saga.journal import JournalCommand
from order_service.use_cases.order_batch import OrderCommand
from order_service.use_cases.product import ProductCommand
from payment_service.model import CancelPayment, ConfirmPayment, RecordOutcome
from tally.order.v1 import order_pb2 as pb
from tests.support.balances import charge, deduct, refund
from tests.support.coupons import campaign, issue, redeem, restore
from tests.support.orders import cancel, create_product, fresh, pay, restock, set_item
from tests.support.payments import cancel as cancel_confirmation
from tests.support.payments import confirm
from tests.support.stack import Stack
from tests.support.statements import Transaction, recorded_transactions

WON: Final = Money("KRW", 100)
ORDER, SAGA = pb.Order, pb.Saga

Run = Callable[[Stack], Awaitable[list[Transaction]]]
"""Carries an operation out; returns its transactions, perhaps with others of the service."""


@dataclass(frozen=True)
class Operation:
    """One operation of a service, and how its row strategy shows."""

    command: type
    run: Run
    table: str
    """The table whose rows the row strategy is about."""
    compared: str = "version"
    """The column that a conditional write compares."""
    sql: str = ""
    """Text in the operation's transaction that other transactions of the run do not have."""


# -- balance -------------------------------------------------------------------------------------


async def charge_balance(stack: Stack) -> list[Transaction]:
    user = await stack.user(100)
    with recorded_transactions() as transactions:
        await stack.balance.ChargeBalance(charge(user, 100, fresh()))
    return transactions


async def deduct_balance(stack: Stack) -> list[Transaction]:
    user = await stack.user(100)
    with recorded_transactions() as transactions:
        await stack.balance.DeductBalance(deduct(user, 100, fresh()))
    return transactions


async def refund_deduction(stack: Stack) -> list[Transaction]:
    user, deduction = await stack.user(100), fresh()
    await stack.balance.DeductBalance(deduct(user, 100, deduction))
    with recorded_transactions() as transactions:
        await stack.balance.RefundDeduction(refund(user, deduction, fresh()))
    return transactions


BALANCE: Final = [
    Operation(ChargeBalance, charge_balance, "accounts"),
    Operation(DeductBalance, deduct_balance, "accounts"),
    Operation(RefundDeduction, refund_deduction, "accounts"),
]

# -- coupon --------------------------------------------------------------------------------------


async def create_campaign(stack: Stack) -> list[Transaction]:
    with recorded_transactions() as transactions:
        await stack.coupon.CreateCampaign(campaign(fresh()))
    return transactions


async def issue_coupon(stack: Stack) -> list[Transaction]:
    made = await stack.coupon.CreateCampaign(campaign(fresh()))
    with recorded_transactions() as transactions:
        await stack.coupon.IssueCoupon(issue(made.campaign.campaign_id, fresh()))
    return transactions


async def redeem_coupon(stack: Stack) -> list[Transaction]:
    user = fresh()
    coupon_id = await stack.coupon_of(user)
    with recorded_transactions() as transactions:
        await stack.coupon.RedeemCoupon(redeem(coupon_id, user, fresh()))
    return transactions


async def restore_coupon(stack: Stack) -> list[Transaction]:
    user, redemption = fresh(), fresh()
    coupon_id = await stack.coupon_of(user)
    await stack.coupon.RedeemCoupon(redeem(coupon_id, user, redemption))
    with recorded_transactions() as transactions:
        await stack.coupon.RestoreCoupon(restore(coupon_id, user, redemption, fresh()))
    return transactions


COUPON: Final = [
    Operation(CreateCampaign, create_campaign, "campaigns"),
    Operation(IssueCoupon, issue_coupon, "campaigns"),
    Operation(RedeemCoupon, redeem_coupon, "coupons", "redeem_request_id"),
    Operation(RestoreCoupon, restore_coupon, "coupons", "redeem_request_id"),
]

# -- payment -------------------------------------------------------------------------------------


async def confirm_payment(stack: Stack) -> list[Transaction]:
    with recorded_transactions() as transactions:
        await stack.payment.ConfirmPayment(confirm(fresh("key"), fresh()))
    return transactions


async def cancel_payment(stack: Stack) -> list[Transaction]:
    confirmation = fresh()
    await stack.payment.ConfirmPayment(confirm(fresh("key"), confirmation))
    with recorded_transactions() as transactions:
        await stack.payment.CancelPayment(cancel_confirmation(confirmation, fresh()))
    return transactions


PAYMENT: Final = [
    Operation(ConfirmPayment, confirm_payment, "payments", sql="INTO payments"),
    Operation(RecordOutcome, confirm_payment, "payments", sql="UPDATE payments"),
    Operation(CancelPayment, cancel_payment, "payments"),
]

# -- order ---------------------------------------------------------------------------------------


async def create_a_product(stack: Stack) -> list[Transaction]:
    with recorded_transactions() as transactions:
        await stack.shop.products.CreateProduct(create_product(fresh(), 1))
    return transactions


async def restock_product(stack: Stack) -> list[Transaction]:
    product_id = await stack.shop.product(1)
    with recorded_transactions() as transactions:
        await stack.shop.products.RestockProduct(restock(product_id, 1, fresh()))
    return transactions


async def change_cart(stack: Stack) -> list[Transaction]:
    user, product_id = fresh(), await stack.shop.product(1)
    await stack.shop.carts.SetCartItem(set_item(user, product_id, 1))
    with recorded_transactions() as transactions:
        await stack.shop.carts.SetCartItem(set_item(user, product_id, 2, expected_version=1))
        await stack.shop.carts.ClearCart(pb.ClearCartRequest(user_id=user, expected_version=2))
    return transactions


async def create_order(stack: Stack) -> list[Transaction]:
    product_id = await stack.shop.product(1)
    with recorded_transactions() as transactions:
        await stack.shop.order(fresh(), {product_id: 1})
    return transactions


async def cancel_order(stack: Stack) -> list[Transaction]:
    order = await stack.order(await stack.user())
    with recorded_transactions() as transactions:
        await stack.shop.orders.CancelOrder(cancel(order, fresh()))
    return transactions


async def expire_order(stack: Stack) -> list[Transaction]:
    order = await stack.order(await stack.user())
    with recorded_transactions() as transactions:
        await stack.databases.sql(
            "order",
            f"UPDATE orders SET expire_time = now() WHERE order_id = '{order.order_id}'",
        )
        await stack.until(order, ORDER.STATE_EXPIRED)
    return transactions


async def pay_order(stack: Stack) -> list[Transaction]:
    order = await stack.order(await stack.user(10_000))
    with recorded_transactions() as transactions:
        await stack.pay(pay(order))
    return transactions


async def pay_slowly(stack: Stack) -> list[Transaction]:
    """Until the lease has been renewed, the deduction is not made."""
    order = await stack.order(await stack.user(10_000))
    gate = stack.wire.hold("deduct_balance")
    with recorded_transactions() as transactions:
        paying = asyncio.create_task(stack.pay(pay(order)))
        await gate.reached()
        while not any("AS renewed" in text for each in transactions for text in each):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        gate.open()
        await paying
    return transactions


async def retry_saga(stack: Stack) -> list[Transaction]:
    order, _, saga = await stack.parked("deduct_balance:undo")
    with recorded_transactions() as transactions:
        await stack.sagas.RetrySaga(pb.RetrySagaRequest(saga_id=saga.saga_id, request_id=fresh()))
        await stack.until_saga(order, SAGA.STATE_COMPENSATED)
    return transactions


async def resolve_saga(stack: Stack) -> list[Transaction]:
    _, _, saga = await stack.parked("deduct_balance:undo")
    with recorded_transactions() as transactions:
        await stack.sagas.ResolveSaga(
            pb.ResolveSagaRequest(saga_id=saga.saga_id, reason="by hand", request_id=fresh())
        )
    return transactions


ORDER_OPERATIONS: Final = [
    Operation(CreateProduct, create_a_product, "products"),
    Operation(RestockProduct, restock_product, "products"),
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
    Operation(RetrySaga, retry_saga, "sagas", sql="INTO answers"),
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
    "coupon": (coupon_service.locking.Command,),
    "payment": (payment_service.model.Command,),
    "order": (OrderCommand, ProductCommand, JournalCommand),
}
"""The types of commands that each service's lanes take."""
OUTSIDE_LANES: Final = {"order": {SetCartItem, ClearCart, TakeOverSagas}}
REDIS_KEYS: Final[dict[str, dict[object, str]]] = {
    "balance": {
        ChargeBalance("ann", WON, "c"): "balance:user:ann",
        DeductBalance("ann", WON, "d", None): "balance:user:ann",
        RefundDeduction("ann", "d", "r"): "balance:user:ann",
    },
    "coupon": {IssueCoupon("c", "ann", "i"): "coupon:issue:c"},
    "payment": {ConfirmPayment("o", "ann", WON, "key", "c", "h"): "payment:key:key"},
    "order": {CreateOrder("ann", (Line("p", 1),), "o"): "order:create:user:ann"},
}
"""Example commands and their Redis keys."""
