"""The limits of the contract, by example: what passes, and which field a refusal names."""

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import InvalidFields
from common.rpc.validation import check
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally.type.v1.money_pb2 import Money

LIMIT = 10**15


def refused(request: Message) -> set[str]:
    """The fields that are refused, which must be some."""
    with pytest.raises(InvalidFields) as refusal:
        check(request)
    return {violation.field for violation in refusal.value.fields}


def krw(amount_minor: int) -> Money:
    return Money(currency_code="KRW", amount_minor=amount_minor)


def deduct(**changed: object) -> balance_pb2.DeductBalanceRequest:
    given: dict[str, object] = {"user_id": "u", "amount": krw(1), "request_id": "r", **changed}
    return balance_pb2.DeductBalanceRequest(**given)  # type: ignore[arg-type]


def confirm(**changed: object) -> payment_pb2.ConfirmPaymentRequest:
    given: dict[str, object] = {
        "order_id": "o",
        "user_id": "u",
        "amount": krw(1),
        "payment_key": "k",
        "request_id": "r",
        **changed,
    }
    return payment_pb2.ConfirmPaymentRequest(**given)  # type: ignore[arg-type]


def campaign(**changed: object) -> coupon_pb2.CreateCampaignRequest:
    given: dict[str, object] = {
        "name": "Spring",
        "percent_discount": 10,
        "quantity": 1,
        "start_time": Timestamp(seconds=100),
        "end_time": Timestamp(seconds=101),
        "coupon_lifetime": Duration(seconds=1),
        "request_id": "r",
        **changed,
    }
    present = {name: value for name, value in given.items() if value is not None}
    return coupon_pb2.CreateCampaignRequest(**present)  # type: ignore[arg-type]


def order(*lines: tuple[str, int]) -> order_pb2.CreateOrderRequest:
    items = [order_pb2.OrderLine(product_id=product, quantity=many) for product, many in lines]
    return order_pb2.CreateOrderRequest(user_id="u", items=items, request_id="r")


def pay(**changed: object) -> order_pb2.PayOrderRequest:
    given: dict[str, object] = {"order_id": "o", "user_id": "u", "request_id": "r", **changed}
    return order_pb2.PayOrderRequest(**given)  # type: ignore[arg-type]


def product(**changed: object) -> order_pb2.CreateProductRequest:
    given: dict[str, object] = {
        "name": "Tea",
        "price": krw(0),
        "stock": 0,
        "request_id": "r",
        **changed,
    }
    return order_pb2.CreateProductRequest(**given)  # type: ignore[arg-type]


GOOD: list[Message] = [
    deduct(),
    deduct(user_id="aZ09._:@-", request_id="r" * 64, order_id="o" * 64, amount=krw(LIMIT)),
    confirm(payment_key="k" * 200),
    campaign(),
    campaign(name="봄 맞이 쿠폰 🌸", percent_discount=100, quantity=10**12),
    campaign(percent_discount=None, fixed_discount=krw(1), max_discount=krw(LIMIT)),
    campaign(coupon_lifetime=Duration(seconds=3650 * 86400)),
    order(("p", 1)),
    order(*((f"p{i}", 10**6) for i in range(100))),
    pay(),
    pay(balance_amount=krw(0), coupon_id="c", payment_key="k"),
    pay(order_id="not a UUID, so it is not found"),
    product(),
    product(price=krw(LIMIT), stock=10**12),
    order_pb2.SetCartItemRequest(user_id="u", product_id="p", quantity=0, expected_version=0),
    order_pb2.ListOrdersRequest(user_id="u", page_size=0),
    order_pb2.ListOrdersRequest(user_id="u", state=order_pb2.Order.STATE_PAID, page_size=2**31 - 1),
    order_pb2.GetSagaRequest(order_id="o"),
]

BAD: list[tuple[Message, str]] = [
    (deduct(user_id=""), "user_id"),
    (deduct(user_id="u" * 65), "user_id"),
    (deduct(user_id="u\0"), "user_id"),
    (deduct(user_id="u\n"), "user_id"),
    (deduct(user_id="ü"), "user_id"),
    (deduct(user_id="u v"), "user_id"),
    (deduct(request_id="r/1"), "request_id"),
    (deduct(order_id=""), "order_id"),
    (deduct(amount=None), "amount"),
    (deduct(amount=krw(0)), "amount.amount_minor"),
    (deduct(amount=krw(-1)), "amount.amount_minor"),
    (deduct(amount=krw(LIMIT + 1)), "amount.amount_minor"),
    (deduct(amount=Money(currency_code="krw", amount_minor=1)), "amount.currency_code"),
    (deduct(amount=Money(currency_code="KRW\n", amount_minor=1)), "amount.currency_code"),
    (deduct(amount=Money(amount_minor=1)), "amount.currency_code"),
    (confirm(payment_key="k" * 201), "payment_key"),
    (confirm(payment_key=""), "payment_key"),
    (campaign(name=" \u3000 "), "name"),
    (campaign(name="a\0b"), "name"),
    (campaign(name="a\x7fb"), "name"),
    (campaign(name="n" * 201), "name"),
    (campaign(percent_discount=None), "discount"),
    (campaign(percent_discount=0), "percent_discount"),
    (campaign(percent_discount=101), "percent_discount"),
    (campaign(percent_discount=None, fixed_discount=krw(0)), "fixed_discount.amount_minor"),
    (campaign(max_discount=krw(0)), "max_discount.amount_minor"),
    (campaign(min_order_amount=krw(LIMIT + 1)), "min_order_amount.amount_minor"),
    (campaign(quantity=0), "quantity"),
    (campaign(quantity=10**12 + 1), "quantity"),
    (campaign(start_time=None), "start_time"),
    (campaign(start_time=Timestamp(seconds=-1)), "start_time"),
    (campaign(end_time=Timestamp(seconds=2**62)), "end_time"),
    (campaign(end_time=Timestamp(seconds=100)), "end_time"),
    (campaign(end_time=Timestamp(seconds=99)), "end_time"),
    (campaign(coupon_lifetime=None), "coupon_lifetime"),
    (campaign(coupon_lifetime=Duration()), "coupon_lifetime"),
    (campaign(coupon_lifetime=Duration(seconds=2**62)), "coupon_lifetime"),
    (order(), "items"),
    (order(*((f"p{i}", 1) for i in range(101))), "items"),
    (order(("p", 1), ("q", 1), ("p", 2)), "items"),
    (order(("p", 1), ("q", 0)), "items[1].quantity"),
    (order(("p", 10**6 + 1)), "items[0].quantity"),
    (order(("", 1)), "items[0].product_id"),
    (pay(order_id=""), "order_id"),
    (pay(balance_amount=krw(-1)), "balance_amount.amount_minor"),
    (pay(coupon_id="c\0"), "coupon_id"),
    (pay(payment_key=""), "payment_key"),
    (product(price=krw(-1)), "price.amount_minor"),
    (product(price=None), "price"),
    (product(stock=-1), "stock"),
    (
        order_pb2.CancelOrderRequest(order_id="o", user_id="u", reason="\t", request_id="r"),
        "reason",
    ),
    (
        order_pb2.SetCartItemRequest(user_id="u", product_id="p", quantity=10**6 + 1),
        "quantity",
    ),
    (order_pb2.ClearCartRequest(user_id="u", expected_version=-1), "expected_version"),
    (order_pb2.ListOrdersRequest(user_id="u", page_size=-1), "page_size"),
    (order_pb2.ListOrdersRequest(user_id="u", page_token="t" * 1025), "page_token"),
    (order_pb2.ListOrdersRequest(user_id="u", state=order_pb2.Order.STATE_UNSPECIFIED), "state"),
    (order_pb2.GetSagaRequest(), "target"),
    (order_pb2.GetSagaRequest(saga_id=""), "saga_id"),
    (balance_pb2.GetBalanceRequest(user_id="u", currency_code="KR"), "currency_code"),
]


@pytest.mark.parametrize("request_", GOOD, ids=lambda r: r.DESCRIPTOR.name)
def test_a_request_within_its_limits_passes(request_: Message) -> None:
    check(request_)


@pytest.mark.parametrize(
    ("request_", "field"), BAD, ids=[f"{r.DESCRIPTOR.name}-{field}" for r, field in BAD]
)
def test_a_request_beyond_a_limit_is_refused_naming_just_the_field(
    request_: Message, field: str
) -> None:
    assert refused(request_) == {field}


def test_an_undefined_state_is_refused() -> None:
    request = order_pb2.ListOrdersRequest.FromString(
        order_pb2.ListOrdersRequest(user_id="u").SerializeToString() + b"\x10\x63"
    )
    assert refused(request) == {"state"}
