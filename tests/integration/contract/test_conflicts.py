"""Well-formed requests that the data does not allow: refused with the reason, and nothing is done.

Every mutation's request_id with other content, from the descriptors; the rest by example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration

from tally.order.v1 import order_pb2 as order
from tally.type.v1.money_pb2 import Money
from tests.integration.contract.invalid_values import LIMIT
from tests.integration.contract.services import Services
from tests.integration.contract.statuses import (
    CURRENCY,
    REUSED,
    ExpectedStatus,
    expected,
    failed,
    invalid,
    not_found,
)
from tests.integration.contract.valid_requests import USER, Seed, copy_of, fresh
from tests.support.balances import won
from tests.support.contract import METHODS
from tests.support.orders import UNKNOWN_ID, create_order
from tests.support.seats import labels, order_seats

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


def change(message: Any, field: FieldDescriptor, name: str, seed: Seed) -> None:
    """Give a field of the method's request another valid value."""
    value = getattr(message, field.name)
    if field.name in OTHER_IDS and name != "PayOrder":
        setattr(message, field.name, OTHER_IDS[field.name](seed))
    elif field.name == "order_id" and name in {"PayOrder", "CancelOrder"}:
        message.order_id = seed.pending_orders[-1]
    elif field.type == FieldDescriptor.TYPE_BOOL:
        setattr(message, field.name, not value)
    elif isinstance(value, Money):
        value.amount_minor += 1
    elif field.is_repeated:
        change_second(value, name)
    elif field.message_type is not None:
        value.seconds += 1
    elif field.name == "last_reason":
        message.last_reason += "_OTHER"
    elif field.name == "outcome":
        message.outcome -= 1
    elif field.type == FieldDescriptor.TYPE_STRING:
        setattr(message, field.name, f"{value}-other")
    else:
        setattr(message, field.name, value + 1)


def change_second(values: Any, name: str) -> None:
    """Give the second element of a list another valid value."""
    if name == "AddSeats":
        values[1] += "-other"
    elif name == "ResolveSaga":
        values[1].reason += "-other"
    else:
        values[1].quantity += 1


def variants(request: Any, name: str, seed: Seed) -> dict[str, Any]:
    """The request with each field changed, and without each optional field."""
    found = {}
    for field in request.DESCRIPTOR.fields:
        if field.name in {"user_id", "request_id", "record_only"}:
            continue  # another user's request, another intent, or not a part of it
        choice = field.containing_oneof
        if choice is not None and len(choice.fields) > 1 and not request.HasField(field.name):
            continue  # the choice that was not made
        found[field.name] = copy_of(request)
        change(found[field.name], field, name, seed)
        if field.name in {"max_discount", "min_order_amount", "balance_amount"} or (
            # Left out, it means the same as its default.
            getattr(request, field.name) != field.default_value
            and field.has_presence
            and field.message_type is None
            and choice
            and len(choice.fields) == 1
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


def forbidden_requests(services: Services) -> Iterator[tuple[Any, ExpectedStatus]]:
    """Valid requests with a value that the seeded data does not allow."""
    seed, valid = services.seed, services.valid
    euros, dollars = (Money(currency_code=code, amount_minor=1) for code in ("EUR", "USD"))
    dearest, half, one = (seed.product_of_price[price] for price in (LIMIT, LIMIT // 2, 1))

    def create(items: dict[str, int]) -> Any:
        return create_order(USER, items, fresh())

    def pay(**fields: Any) -> Any:
        given = {"order_id": seed.pending_orders[-1], "coupon_id": None, "payment_key": None}
        return valid("PayOrder", **{**given, **fields})

    yield valid("DeductBalance", amount=won(LIMIT)), failed("INSUFFICIENT_FUNDS")
    for name, fields in (
        ("DeductBalance", {"amount": euros}),
        ("GetBalance", {"currency_code": "EUR"}),
        ("ListLedgerEntries", {"currency_code": "EUR"}),
    ):
        yield valid(name, **fields), not_found("ACCOUNT_NOT_FOUND")
    issued = expected("ALREADY_EXISTS", "COUPON_ALREADY_ISSUED")
    yield valid("IssueCoupon", campaign_id=seed.campaigns[0]), issued
    for field in ("max_discount", "min_order_amount"):
        for discount in ({}, {"percent_discount": None, "fixed_discount": won(1)}):
            yield valid("CreateCampaign", **{**discount, field: dollars}), CURRENCY
    yield valid("CreateCampaign", shares=2, queue_only=True), invalid("queue_only")
    for name in ("IssueCoupon", "BatchIssueCoupons"):
        yield valid(name, campaign_id=seed.queued), failed("CAMPAIGN_QUEUED")
    yield valid("QueueCoupon", campaign_id=seed.split), invalid("campaign_id")
    yield valid("QueueCoupon", campaign_id=seed.campaigns[0], user_id=USER), issued
    yield valid("RedeemCoupon", coupon_id=seed.coupons[2], order_amount=dollars), CURRENCY
    yield valid("RestockProduct", quantity=10**12), invalid("quantity")
    yield valid("RestockProduct", product_id=seed.show), failed("PRODUCT_SEATED")
    yield valid("AddSeats", product_id=seed.products[0]), failed("PRODUCT_NOT_SEATED")
    exists = expected("ALREADY_EXISTS", "SEAT_EXISTS")
    yield valid("AddSeats", labels=labels(2)), exists
    for of, status in (
        (labels(1), failed("SEAT_TAKEN")),
        ([*labels(2)], failed("SEAT_TAKEN")),
        (["B-1"], not_found("SEAT_NOT_FOUND", "items[0].seats[0]")),
    ):
        yield order_seats(USER, {seed.show: of}), status
    yield create({seed.show: 1}), failed("PRODUCT_SEATED", "items[0].seats")
    for name in ("SetCartItem", "ClearCart"):
        yield valid(name, expected_version=2**63 - 1), expected("ABORTED", "CART_CHANGED")
    yield create({seed.products[1]: 10**6}), failed("OUT_OF_STOCK")
    unknown = not_found("PRODUCT_NOT_FOUND", names=UNKNOWN_ID)
    yield create({seed.products[1]: 1, UNKNOWN_ID: 1}), unknown
    yield create({seed.products[1]: 1, seed.dollar_product: 1}), CURRENCY
    yield create({dearest: 2}), invalid("items")
    yield create({dearest: 10**6}), invalid("items")
    yield create({dearest: 1, one: 1}), invalid("items")
    yield create({half: 2, one: 1}), invalid("items")
    yield create({half: 3}), invalid("items")
    exceeds = expected("INVALID_ARGUMENT", "AMOUNT_EXCEEDS_DUE")
    yield pay(balance_amount=won(10_001)), exceeds
    yield pay(balance_amount=won(LIMIT), payment_key=fresh()), exceeds
    yield pay(balance_amount=won(9_999)), failed("PAYMENT_KEY_REQUIRED")
    yield pay(balance_amount=won(0)), failed("PAYMENT_KEY_REQUIRED")
    yield pay(balance_amount=dollars), CURRENCY
    yield pay(balance_amount=None, order_id=seed.paid_orders[0]), failed("ORDER_NOT_PAYABLE")
    used = expected("ALREADY_EXISTS", "PAYMENT_KEY_USED")
    yield valid("ConfirmPayment", payment_key=seed.payment_keys[0]), used


async def test_requests_that_the_data_forbids_are_refused(services: Services) -> None:
    found = []
    async with services.unchanged():
        for request, status in forbidden_requests(services):
            if differences := await services.differences(request, status):
                found.append(f"{type(request).__name__} {request}: {differences}")
    assert found == []


async def test_order_of_the_largest_amount_is_created(services: Services) -> None:
    """The control of the amounts above that are refused."""
    half = services.seed.product_of_price[LIMIT // 2]
    made = await services.call(create_order(USER, {half: 2}, fresh()))
    assert made.order.subtotal == won(LIMIT)


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
        assert await services.differences(redeem, failed("REDEMPTION_CANCELLED")) == []


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
