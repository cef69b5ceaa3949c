"""Requests that are well-formed and yet cannot be: each told why, and nothing done.

Every mutation's request_id with other content, walked from the descriptors; and by example what
only the data can tell to be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration

from tally.coupon.v1 import coupon_pb2 as coupon
from tally.order.v1 import order_pb2 as order
from tally.payment.v1 import payment_pb2 as payment
from tally.type.v1.money_pb2 import Money
from tests.integration.contract.requests import name_of, valid, won
from tests.integration.contract.told import (
    CURRENCY,
    REUSED,
    Expected,
    Told,
    invalid,
    not_found,
)
from tests.integration.contract.world import METHODS, USER, Things, World, fresh, method_named
from tests.support.orders import UNKNOWN_ID, create_product

pytestmark = pytest.mark.asyncio(loop_scope="module")

MUTATIONS = [method for method in METHODS if "request_id" in method.input_type.fields_by_name]
# What is used up by being carried out is given to one method each, counted from the end.
OTHER_IDS: dict[str, Callable[[Things], str]] = {
    "campaign_id": lambda things: things.campaigns[0],
    "coupon_id": lambda things: things.coupons[-1],
    "product_id": lambda things: things.products[-1],
    "saga_id": lambda things: things.sagas[-1],
}
LIMIT = 10**15
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


async def told(world: World, name: str | MethodDescriptor, request: Any) -> Told | None:
    method = method_named(name) if isinstance(name, str) else name
    try:
        await world.call(method, request)
    except grpc.aio.AioRpcError as error:
        return Told.by(error)
    return None


async def wrong(world: World, name: Any, request: Any, expected: Expected) -> list[str]:
    answer = await told(world, name, request)
    return ["was carried out"] if answer is None else answer.differences(expected)


def change(message: Any, field: FieldDescriptor, method: MethodDescriptor, things: Things) -> None:
    """Give the field another value that is as valid as the one it has."""
    name, value = field.name, getattr(message, field.name)
    if name in OTHER_IDS and method.name != "PayOrder":
        setattr(message, name, OTHER_IDS[name](things))
    elif name == "order_id" and method.name in {"PayOrder", "CancelOrder"}:
        message.order_id = things.pending_orders[-1]
    elif isinstance(value, Money):
        value.amount_minor += 1
    elif field.is_repeated:
        value[1].quantity += 1
    elif field.message_type is not None:
        value.seconds += 1
    elif field.type == FieldDescriptor.TYPE_STRING:
        setattr(message, name, f"{value}-other")
    else:
        setattr(message, name, value + 1)


def variants(request: Any, method: MethodDescriptor, things: Things) -> dict[str, Any]:
    """The request with each of its fields another one; of optional ones, also without."""
    found = {}
    for field in method.input_type.fields:
        if field.name in {"user_id", "request_id"}:
            continue  # other scopes: another user's, and another intent's
        choice = field.containing_oneof
        if choice is not None and len(choice.fields) > 1 and not request.HasField(field.name):
            continue  # the choice that was not made
        found[field.name] = type(request).FromString(request.SerializeToString())
        change(found[field.name], field, method, things)
        if field.name in {"max_discount", "min_order_amount", "balance_amount"} or (
            field.has_presence and field.message_type is None and choice and len(choice.fields) == 1
        ):
            without = type(request).FromString(request.SerializeToString())
            without.ClearField(field.name)
            found[f"no {field.name}"] = without
    return found


@pytest.mark.parametrize("method", MUTATIONS, ids=name_of)
async def test_a_request_id_with_other_content_is_refused(
    world: World, method: MethodDescriptor
) -> None:
    request = valid(method, world)
    if method.name in {"RetrySaga", "ResolveSaga"}:
        # As if it had been carried out before: no saga of this world needs attention.
        await world.databases["order"].execute(
            "INSERT INTO answers (method, scope, request_id, state, digest, body)"
            " VALUES ($1, '', $2, 'ANSWERED', $3, '{}')",
            method.name,
            request.request_id,
            bytes(16),
        )
    else:
        assert not (await world.call(method, request)).replayed
    others = variants(request, method, world.things)
    assert others
    found = {}
    async with world.untouched():
        for field, other in others.items():
            if differs := await wrong(world, method, other, REUSED):
                found[field] = differs
        if method.name not in {"RetrySaga", "ResolveSaga"}:
            assert (await world.call(method, request)).replayed
    assert found == {}


async def test_amounts_of_one_request_are_in_one_currency(world: World) -> None:
    dollars = Money(currency_code="USD", amount_minor=1)
    things = world.things
    made = await world.call(
        method_named("CreateProduct"), create_product(fresh(), 10, currency="USD")
    )
    mixed = valid(method_named("CreateOrder"), world)
    mixed.items.add(product_id=made.product.product_id, quantity=1)
    cases: list[tuple[str, Any]] = [("CreateOrder", mixed)]
    for field in ("max_discount", "min_order_amount"):
        for discount in ({"percent_discount": 1}, {"fixed_discount": won(1)}):
            campaign = valid(method_named("CreateCampaign"), world)
            campaign.MergeFrom(coupon.CreateCampaignRequest(**discount))
            getattr(campaign, field).CopyFrom(dollars)
            cases.append(("CreateCampaign", campaign))
    redeem = valid(method_named("RedeemCoupon"), world)
    redeem.coupon_id = things.coupons[2]
    redeem.order_amount.currency_code = "USD"
    pay = valid(method_named("PayOrder"), world)
    pay.order_id = things.pending_orders[-1]
    pay.balance_amount.CopyFrom(dollars)
    cases += [("RedeemCoupon", redeem), ("PayOrder", pay)]
    async with world.untouched():
        found = [
            f"{name}: {await wrong(world, name, request, CURRENCY)}" for name, request in cases
        ]
    assert found == [f"{name}: []" for name, _ in cases]


async def test_an_account_is_of_one_currency(world: World) -> None:
    async with world.untouched():
        for name in ("DeductBalance", "GetBalance", "ListLedgerEntries"):
            request = valid(method_named(name), world)
            if name == "DeductBalance":
                request.amount.currency_code = "EUR"
            else:
                request.currency_code = "EUR"
            assert await wrong(world, name, request, not_found("ACCOUNT_NOT_FOUND")) == []


async def test_an_order_beyond_the_largest_amount_names_its_items(world: World) -> None:
    async def product(price: int) -> str:
        request = create_product(fresh(), 10**12, price=price)
        made = await world.call(method_named("CreateProduct"), request)
        return str(made.product.product_id)

    dearest, half, one = await product(LIMIT), await product(LIMIT // 2), await product(1)
    too_much = [{dearest: 2}, {dearest: 10**6}, {dearest: 1, one: 1}, {half: 2, one: 1}, {half: 3}]
    found = []
    async with world.untouched():
        for items in too_much:
            request = order.CreateOrderRequest(user_id=USER, request_id=fresh())
            for product_id, quantity in items.items():
                request.items.add(product_id=product_id, quantity=quantity)
            found += await wrong(world, "CreateOrder", request, invalid("items"))
    assert found == []
    # The control: just as much as may be.
    request = order.CreateOrderRequest(user_id=USER, request_id=fresh())
    request.items.add(product_id=half, quantity=2)
    assert (await world.call(method_named("CreateOrder"), request)).order.subtotal == won(LIMIT)


async def test_what_the_data_forbids_is_told_and_not_done(world: World) -> None:
    things = world.things

    def changed(name: str, **fields: Any) -> tuple[str, Any]:
        request = valid(method_named(name), world)
        for field, value in fields.items():
            if isinstance(value, Money):
                getattr(request, field).CopyFrom(value)
            else:
                setattr(request, field, value)
        return name, request

    def pay(**fields: Any) -> tuple[str, Any]:
        given = {"order_id": things.pending_orders[-1], "user_id": USER, "request_id": fresh()}
        return "PayOrder", order.PayOrderRequest(**{**given, **fields})

    def refusal(code: grpc.StatusCode, reason: str) -> Expected:
        return Expected(code, reason)

    short = order.CreateOrderRequest(user_id=USER, request_id=fresh())
    short.items.add(product_id=things.products[1], quantity=10**6)
    unknown = order.CreateOrderRequest(user_id=USER, request_id=fresh())
    unknown.items.add(product_id=things.products[1], quantity=1)
    unknown.items.add(product_id=UNKNOWN_ID, quantity=1)
    exceeds = refusal(grpc.StatusCode.INVALID_ARGUMENT, "AMOUNT_EXCEEDS_DUE")
    changed_cart = refusal(grpc.StatusCode.ABORTED, "CART_CHANGED")
    issued = refusal(grpc.StatusCode.ALREADY_EXISTS, "COUPON_ALREADY_ISSUED")
    cases: list[tuple[tuple[str, Any], Expected]] = [
        (
            changed("DeductBalance", amount=won(LIMIT)),
            refusal(PRECONDITION, "INSUFFICIENT_FUNDS"),
        ),
        (changed("RestockProduct", quantity=10**12), invalid("quantity")),
        (changed("SetCartItem", expected_version=2**63 - 1), changed_cart),
        (changed("ClearCart", expected_version=2**63 - 1), changed_cart),
        (("CreateOrder", short), refusal(PRECONDITION, "OUT_OF_STOCK")),
        (("CreateOrder", unknown), not_found("PRODUCT_NOT_FOUND", names=UNKNOWN_ID)),
        (pay(balance_amount=won(10_001)), exceeds),
        (pay(balance_amount=won(LIMIT), payment_key=fresh()), exceeds),
        (pay(balance_amount=won(9_999)), refusal(PRECONDITION, "PAYMENT_KEY_REQUIRED")),
        (pay(balance_amount=won(0)), refusal(PRECONDITION, "PAYMENT_KEY_REQUIRED")),
        (pay(order_id=things.paid_orders[0]), refusal(PRECONDITION, "ORDER_NOT_PAYABLE")),
        (changed("IssueCoupon", campaign_id=things.campaigns[0]), issued),
    ]
    found = {}
    async with world.untouched():
        for number, ((name, request), expected) in enumerate(cases):
            if differs := await wrong(world, name, request, expected):
                found[f"{number} {name}"] = differs
    assert found == {}


async def test_a_payment_key_that_has_paid_is_used_up(world: World) -> None:
    first = valid(method_named("ConfirmPayment"), world)
    await world.call(method_named("ConfirmPayment"), first)
    again = payment.ConfirmPaymentRequest.FromString(first.SerializeToString())
    again.request_id = fresh()
    used = Expected(grpc.StatusCode.ALREADY_EXISTS, "PAYMENT_KEY_USED")
    async with world.untouched():
        assert await wrong(world, "ConfirmPayment", again, used) == []


@pytest.mark.parametrize("coupon_id", [UNKNOWN_ID, "nonsense", "a\0b", "x" * 40_000, "é", " "])
async def test_restoring_a_coupon_that_is_not_there_cancels_its_redemption(
    world: World, coupon_id: str
) -> None:
    """No error, whatever the coupon is called: a redemption that was refused can be undone too."""
    restore = valid(method_named("RestoreCoupon"), world)
    restore.coupon_id = coupon_id
    response = await world.call(method_named("RestoreCoupon"), restore)
    assert not response.HasField("coupon")
    redeem = valid(method_named("RedeemCoupon"), world)
    redeem.coupon_id = world.things.coupons[2]
    redeem.request_id = restore.redeem_request_id
    cancelled = Expected(PRECONDITION, "REDEMPTION_CANCELLED")
    async with world.untouched():
        assert (await world.call(method_named("RestoreCoupon"), restore)).replayed
        assert await wrong(world, "RedeemCoupon", redeem, cancelled) == []


@pytest.mark.parametrize("coupon_id", [UNKNOWN_ID, "nonsense"])
async def test_paying_with_a_coupon_that_is_not_there_takes_nothing(
    world: World, coupon_id: str
) -> None:
    """The attempt is kept, as any that was begun; money, stock and the gateway are as before."""
    pay = valid(method_named("PayOrder"), world)
    pay.order_id = world.things.pending_orders[-2]
    pay.coupon_id = coupon_id
    before, charged = await world.books(), world.gateway.charges()
    assert await wrong(world, "PayOrder", pay, not_found("COUPON_NOT_FOUND")) == []
    after = await world.books()
    for service, table in (
        *(("balance", "accounts"), ("balance", "ledger_entries"), ("order", "products")),
        *(("coupon", "coupons"), ("coupon", "redemptions"), ("payment", "payments")),
    ):
        assert after[service][table] == before[service][table], table
    assert world.gateway.charges() == charged
    get = order.GetOrderRequest(order_id=pay.order_id, user_id=USER)
    now = (await world.call(method_named("GetOrder"), get)).order
    assert (now.state, now.failure_reason) == (order.Order.STATE_PENDING, "COUPON_NOT_FOUND")


async def test_times_as_fine_as_they_come_are_kept_to_the_microsecond(world: World) -> None:
    request = valid(method_named("CreateCampaign"), world)
    request.start_time.nanos, request.end_time.nanos = 1, 999_999_999
    request.coupon_lifetime.CopyFrom(Duration(nanos=1))
    made = (await world.call(method_named("CreateCampaign"), request)).campaign
    assert (made.start_time.nanos, made.end_time.nanos) == (0, 999_999_000)
    assert made.coupon_lifetime == Duration(nanos=1_000)
