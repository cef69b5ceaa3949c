"""Every field of every method, broken in every way there is: told so by its name, nothing done.

Walked from the descriptors: a method or a field that is new fails here until it is said how to
send it and how to break it.
"""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from tally.type.v1.money_pb2 import Money
from tests.integration.contract.breaks import breaks_of
from tests.integration.contract.requests import VALID, name_of, valid
from tests.integration.contract.told import Expected, Told, invalid, not_found
from tests.integration.contract.world import METHODS, World, every_field, method_named

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOT_RETRYABLE = Expected(grpc.StatusCode.FAILED_PRECONDITION, "SAGA_NOT_RETRYABLE")
STRANGERS: dict[str, str | None] = {
    "ChargeBalance": None,
    "DeductBalance": "ACCOUNT_NOT_FOUND",
    "RefundDeduction": None,
    "GetBalance": "ACCOUNT_NOT_FOUND",
    "ListLedgerEntries": "ACCOUNT_NOT_FOUND",
    "IssueCoupon": None,
    "GetCoupon": "COUPON_NOT_FOUND",
    "ListCoupons": None,
    "RedeemCoupon": "COUPON_NOT_FOUND",
    "RestoreCoupon": None,
    "GetCart": None,
    "SetCartItem": None,
    "ClearCart": None,
    "CreateOrder": None,
    "PayOrder": "ORDER_NOT_FOUND",
    "CancelOrder": "ORDER_NOT_FOUND",
    "GetOrder": "ORDER_NOT_FOUND",
    "ListOrders": None,
    "WatchOrder": "ORDER_NOT_FOUND",
    "ConfirmPayment": None,
    "CancelPayment": None,
    "GetPayment": "PAYMENT_NOT_FOUND",
    "ListPayments": None,
}
"""What a user is told who has nothing; None: what everybody is, for anybody may call."""


async def told(world: World, method: MethodDescriptor, request: object) -> Told | None:
    """What the call was told; None if it succeeded."""
    try:
        await world.call(method, request)  # type: ignore[arg-type]
    except grpc.aio.AioRpcError as error:
        return Told.by(error)
    return None


def wrong(answer: Told | None, expected: Expected) -> list[str]:
    return ["was carried out"] if answer is None else answer.differences(expected)


async def test_the_walk_knows_every_method() -> None:
    assert set(VALID) == {name_of(method) for method in METHODS}
    assert set(STRANGERS) == {
        method.name for method in METHODS if "user_id" in method.input_type.fields_by_name
    }
    assert {field.name for field in Money.DESCRIPTOR.fields} == {"currency_code", "amount_minor"}


@pytest.mark.parametrize(
    ("method", "field"),
    [pytest.param(*each, id=f"{name_of(each[0])}.{each[1]}") for each in every_field()],
)
async def test_a_broken_field_is_named_and_nothing_is_done(
    world: World, method: MethodDescriptor, field: str
) -> None:
    ways = list(breaks_of(method.input_type.fields_by_name[field]))
    assert ways
    found = []
    async with world.untouched():
        for way in ways:
            request = valid(method, world)
            way.apply(request)
            answer = await told(world, method, request)
            found += [f"{way.label}: {each}" for each in wrong(answer, way.expected)]
    assert found == []


@pytest.mark.parametrize("method", METHODS, ids=name_of)
async def test_a_choice_that_is_not_made_is_named(world: World, method: MethodDescriptor) -> None:
    choices = [
        choice
        for choice in method.input_type.oneofs
        if not choice.name.startswith("_")  # not the compiler's own, of an optional field
    ]
    assert bool(choices) == (method.name in {"CreateCampaign", "GetSaga"})
    async with world.untouched():
        for choice in choices:
            request = valid(method, world)
            request.ClearField(choice.name)
            assert wrong(await told(world, method, request), invalid(choice.name)) == []


@pytest.mark.parametrize("method", METHODS, ids=name_of)
async def test_a_user_who_has_nothing_is_told_so(world: World, method: MethodDescriptor) -> None:
    reason = STRANGERS.get(method.name)
    if reason is None:
        return
    request = valid(method, world)
    request.user_id = "nobody"
    async with world.untouched():
        assert wrong(await told(world, method, request), not_found(reason)) == []


async def test_the_end_of_a_campaign_comes_after_its_start(world: World) -> None:
    method = method_named("CreateCampaign")
    request = valid(method, world)
    found = []
    async with world.untouched():
        for seconds, nanos in ((0, 0), (0, -1), (-1, 0), (-(10**8), 0)):
            request.end_time.CopyFrom(request.start_time)
            request.start_time.nanos = 1
            request.end_time.nanos = 1 + nanos
            request.end_time.seconds += seconds
            found += wrong(await told(world, method, request), invalid("end_time"))
    assert found == []


async def test_the_requests_that_were_broken_are_valid_when_they_are_not(world: World) -> None:
    """The control of this module: only what was broken was refused."""
    found = {}
    for method in METHODS:
        answer = await told(world, method, valid(method, world))
        if method.name in {"RetrySaga", "ResolveSaga"}:
            # Valid, but there is nothing to put right.
            assert wrong(answer, NOT_RETRYABLE) == []
        elif answer is not None:
            found[method.name] = answer
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        'duplicate key value violates unique constraint "accounts_pkey"',
        "(asyncpg.exceptions.DataError): invalid input for query argument $1",
        "[SQL: SELECT balance FROM accounts WHERE user_id = $1]",
        "'NoneType' object has no attribute 'price'",
        'File "balance_service/store.py", line 12',
        "<balance_service.model.Account object at 0x7f0000000000>",
        "failed to connect to ipv4:127.0.0.1:50051",
        "cannot open /tmp/valkey/socket",
        "OverflowError: date value out of range",
        "a\0b",
    ],
)
async def test_what_a_client_must_not_see_is_noticed(text: str) -> None:
    """The control of every look for leaks."""
    assert Told(grpc.StatusCode.INTERNAL, text, texts=[text]).leaks()


async def test_a_write_is_noticed(world: World) -> None:
    """The control of every look at the books: one call of each service that writes."""
    for name in ("ChargeBalance", "CreateCampaign", "CreateProduct", "CancelPayment"):
        with pytest.raises(AssertionError, match="written to"):
            async with world.untouched():
                await world.call(method_named(name), valid(method_named(name), world))
