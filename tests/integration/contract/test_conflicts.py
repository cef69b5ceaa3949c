"""Well-formed requests that the data does not allow: refused with the reason, and nothing is done.

Every mutation's request_id with other content, from the descriptors; the rest by example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration

from tally.order.v1 import order_pb2 as order
from tally.type.v1.money_pb2 import Money
from tests.integration.contract.services import Services
from tests.integration.contract.statuses import (
    CURRENCY,
    REUSED,
    ExpectedStatus,
    expected,
    invalid,
    not_found,
)
from tests.integration.contract.valid_requests import USER, Seed, copy_of, fresh
from tests.support.balances import won
from tests.support.contract import METHODS
from tests.support.orders import UNKNOWN_ID, create_order, create_product

pytestmark = pytest.mark.asyncio(loop_scope="module")

MUTATIONS = [method for method in METHODS if "request_id" in method.input_type.fields_by_name]
# No saga in these services needs attention, so these two cannot be carried out first.
OF_NO_SAGA = {"RetrySaga", "ResolveSaga"}
# What a request uses up is given to one method each, counted from the end.
OTHER_IDS: dict[str, Callable[[Seed], str]] = {
    "campaign_id": lambda seed: seed.campaigns[0],
    "coupon_id": lambda seed: seed.coupons[-1],
    "product_id": lambda seed: seed.products[-1],
    "saga_id": lambda seed: seed.sagas[-1],
}
LIMIT = 10**15
EXCEEDS = expected("INVALID_ARGUMENT", "AMOUNT_EXCEEDS_DUE")
KEY_REQUIRED = expected("FAILED_PRECONDITION", "PAYMENT_KEY_REQUIRED")
CART_CHANGED = expected("ABORTED", "CART_CHANGED")


def change(message: Any, field: FieldDescriptor, name: str, seed: Seed) -> None:
    """Give a field of the method's request another valid value."""
    value = getattr(message, field.name)
    if field.name in OTHER_IDS and name != "PayOrder":
        setattr(message, field.name, OTHER_IDS[field.name](seed))
    elif field.name == "order_id" and name in {"PayOrder", "CancelOrder"}:
        message.order_id = seed.pending_orders[-1]
    elif isinstance(value, Money):
        value.amount_minor += 1
    elif field.is_repeated:
        value[1].quantity += 1
    elif field.message_type is not None:
        value.seconds += 1
    elif field.type == FieldDescriptor.TYPE_STRING:
        setattr(message, field.name, f"{value}-other")
    else:
        setattr(message, field.name, value + 1)


def variants(request: Any, name: str, seed: Seed) -> dict[str, Any]:
    """The request with each field changed, and without each optional field."""
    found = {}
    for field in request.DESCRIPTOR.fields:
        if field.name in {"user_id", "request_id"}:
            continue  # another user's request, or another intent
        choice = field.containing_oneof
        if choice is not None and len(choice.fields) > 1 and not request.HasField(field.name):
            continue  # the choice that was not made
        found[field.name] = copy_of(request)
        change(found[field.name], field, name, seed)
        if field.name in {"max_discount", "min_order_amount", "balance_amount"} or (
            field.has_presence and field.message_type is None and choice and len(choice.fields) == 1
        ):
            found[f"no {field.name}"] = copy_of(request)
            found[f"no {field.name}"].ClearField(field.name)
    return found


@pytest.mark.parametrize("method", MUTATIONS, ids=lambda method: method.name)
async def test_request_id_with_other_content_is_refused(
    services: Services, method: MethodDescriptor
) -> None:
    request = services.valid(method.name)
    if method.name in OF_NO_SAGA:
        await services.databases["order"].execute(
            "INSERT INTO answers (method, scope, request_id, state, digest, body)"
            " VALUES ($1, '', $2, 'ANSWERED', $3, '{}')",
            method.name,
            request.request_id,
            bytes(16),
        )
    else:
        assert not (await services.call(request)).replayed
    others = variants(request, method.name, services.seed)
    assert others
    async with services.unchanged():
        found = {name: await services.differences(other, REUSED) for name, other in others.items()}
        if method.name not in OF_NO_SAGA:
            assert (await services.call(request)).replayed
    assert not any(found.values()), found


async def test_amounts_of_a_request_must_have_one_currency(services: Services) -> None:
    dollars = Money(currency_code="USD", amount_minor=1)
    made = await services.call(create_product(fresh(), 10, currency="USD"))
    mixed = services.valid("CreateOrder")
    mixed.items.add(product_id=made.product.product_id, quantity=1)
    campaigns = [
        services.valid("CreateCampaign", **{field: dollars})
        for field in ("max_discount", "min_order_amount")
    ]
    fixed = [copy_of(request) for request in campaigns]
    for request in fixed:
        request.fixed_discount.CopyFrom(won(1))
    redeem = services.valid(
        "RedeemCoupon", coupon_id=services.seed.coupons[2], order_amount=dollars
    )
    pay = services.valid(
        "PayOrder", order_id=services.seed.pending_orders[-1], balance_amount=dollars
    )
    cases = [mixed, *campaigns, *fixed, redeem, pay]
    async with services.unchanged():
        found = [await services.differences(request, CURRENCY) for request in cases]
    assert found == [[] for _ in cases]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("DeductBalance", {"amount": Money(currency_code="EUR", amount_minor=100)}),
        ("GetBalance", {"currency_code": "EUR"}),
        ("ListLedgerEntries", {"currency_code": "EUR"}),
    ],
)
async def test_account_has_one_currency(
    services: Services, name: str, fields: dict[str, Any]
) -> None:
    request = services.valid(name, **fields)
    async with services.unchanged():
        assert await services.differences(request, not_found("ACCOUNT_NOT_FOUND")) == []


async def test_order_above_the_largest_amount_names_its_items(services: Services) -> None:
    async def product(price: int) -> str:
        made = await services.call(create_product(fresh(), 10**12, price=price))
        return str(made.product.product_id)

    dearest, half, one = await product(LIMIT), await product(LIMIT // 2), await product(1)
    too_much = [{dearest: 2}, {dearest: 10**6}, {dearest: 1, one: 1}, {half: 2, one: 1}, {half: 3}]
    async with services.unchanged():
        found = [
            await services.differences(create_order(USER, items, fresh()), invalid("items"))
            for items in too_much
        ]
    assert found == [[] for _ in too_much]
    # The control: exactly the largest amount.
    made = await services.call(create_order(USER, {half: 2}, fresh()))
    assert made.order.subtotal == won(LIMIT)


async def test_requests_that_the_data_forbids_are_refused(services: Services) -> None:
    seed, valid = services.seed, services.valid

    def pay(**fields: Any) -> Any:
        given = {"order_id": seed.pending_orders[-1], "user_id": USER, "request_id": fresh()}
        return order.PayOrderRequest(**{**given, **fields})

    def create(**quantities: int) -> Any:
        return create_order(
            USER, {seed.products[1]: quantities.pop("known"), **quantities}, fresh()
        )

    cases: list[tuple[Any, ExpectedStatus]] = [
        (
            valid("DeductBalance", amount=won(LIMIT)),
            expected("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS"),
        ),
        (valid("RestockProduct", quantity=10**12), invalid("quantity")),
        (valid("SetCartItem", expected_version=2**63 - 1), CART_CHANGED),
        (valid("ClearCart", expected_version=2**63 - 1), CART_CHANGED),
        (create(known=10**6), expected("FAILED_PRECONDITION", "OUT_OF_STOCK")),
        (create(known=1, **{UNKNOWN_ID: 1}), not_found("PRODUCT_NOT_FOUND", names=UNKNOWN_ID)),
        (pay(balance_amount=won(10_001)), EXCEEDS),
        (pay(balance_amount=won(LIMIT), payment_key=fresh()), EXCEEDS),
        (pay(balance_amount=won(9_999)), KEY_REQUIRED),
        (pay(balance_amount=won(0)), KEY_REQUIRED),
        (pay(order_id=seed.paid_orders[0]), expected("FAILED_PRECONDITION", "ORDER_NOT_PAYABLE")),
        (
            valid("IssueCoupon", campaign_id=seed.campaigns[0]),
            expected("ALREADY_EXISTS", "COUPON_ALREADY_ISSUED"),
        ),
    ]
    async with services.unchanged():
        found = [await services.differences(*case) for case in cases]
    assert found == [[] for _ in cases]


async def test_payment_key_that_has_paid_is_refused(services: Services) -> None:
    first = services.valid("ConfirmPayment")
    await services.call(first)
    again = copy_of(first)
    again.request_id = fresh()
    async with services.unchanged():
        used = expected("ALREADY_EXISTS", "PAYMENT_KEY_USED")
        assert await services.differences(again, used) == []


@pytest.mark.parametrize("coupon_id", [UNKNOWN_ID, "nonsense", "a\0b", "x" * 40_000, "é", " "])
async def test_restoring_an_unknown_coupon_cancels_its_redemption(
    services: Services, coupon_id: str
) -> None:
    """It is not an error, whatever the id: a redemption that was refused can be undone too."""
    restore = services.valid("RestoreCoupon", coupon_id=coupon_id)
    assert not (await services.call(restore)).HasField("coupon")
    redeem = services.valid(
        "RedeemCoupon", coupon_id=services.seed.coupons[2], request_id=restore.redeem_request_id
    )
    async with services.unchanged():
        assert (await services.call(restore)).replayed
        cancelled = expected("FAILED_PRECONDITION", "REDEMPTION_CANCELLED")
        assert await services.differences(redeem, cancelled) == []


@pytest.mark.parametrize("coupon_id", [UNKNOWN_ID, "nonsense"])
async def test_paying_with_an_unknown_coupon_takes_nothing(
    services: Services, coupon_id: str
) -> None:
    """The attempt is stored, as any that began; money, stock and the gateway are unchanged."""
    pay = services.valid("PayOrder", order_id=services.seed.pending_orders[-2], coupon_id=coupon_id)
    before, charged = await services.tables(), services.gateway.charges()
    assert await services.differences(pay, not_found("COUPON_NOT_FOUND")) == []
    after = await services.tables()
    for service, table in (
        *(("balance", "accounts"), ("balance", "ledger_entries"), ("order", "products")),
        *(("coupon", "coupons"), ("coupon", "redemptions"), ("payment", "payments")),
    ):
        assert after[service][table] == before[service][table], table
    assert services.gateway.charges() == charged
    get = order.GetOrderRequest(order_id=pay.order_id, user_id=USER)
    now = (await services.call(get)).order
    assert (now.state, now.failure_reason) == (order.Order.STATE_PENDING, "COUPON_NOT_FOUND")


async def test_times_are_kept_to_the_microsecond(services: Services) -> None:
    request = services.valid("CreateCampaign", coupon_lifetime=Duration(nanos=1))
    request.start_time.nanos, request.end_time.nanos = 1, 999_999_999
    made = (await services.call(request)).campaign
    assert (made.start_time.nanos, made.end_time.nanos) == (0, 999_999_000)
    assert made.coupon_lifetime == Duration(nanos=1_000)
