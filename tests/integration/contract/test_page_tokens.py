"""A page token is valid for the list and the filters that it was returned for, and no others."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor

from common import paging
from tally.order.v1.order_pb2 import Order, Saga, Seat
from tests.integration.contract.invalid_values import is_required, token_of
from tests.integration.contract.services import OTHER_USER, Services
from tests.integration.contract.statuses import BAD_TOKEN
from tests.support.contract import METHODS, is_list
from tests.support.orders import UNKNOWN_ID
from tests.support.pages import pages_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

LISTS = [method for method in METHODS if is_list(method)]
OTHER_FILTERS: dict[str, Any] = {
    "user_id": OTHER_USER,
    "currency_code": "USD",
    "ListOrders.state": Order.STATE_PENDING,
    "ListSagas.state": Saga.STATE_COMPENSATED,
    "order_id": "order-2",
    "payment_key": "key-2",
    "product_id": UNKNOWN_ID,
    "ListSeats.state": Seat.STATE_RESERVED,
}
"""Another value of each filter."""
every_list = pytest.mark.parametrize("method", LISTS, ids=lambda method: method.name)

# Changes of a part of a token's key: other types, and other values.
OTHER_TYPES: list[Callable[[Any], object]] = [
    lambda _: None,
    lambda _: True,
    lambda _: 1.5,
    lambda part: [part],
    lambda part: {"a": part},
    lambda part: str(part) if isinstance(part, int) else 0,
]
OTHER_NUMBERS = [2**63, -(2**63), 10**400, float("nan"), float("inf")]
OTHER_TEXTS = ["nonsense", "\0", "\ud800", UNKNOWN_ID.upper(), ""]


def unfiltered(method: MethodDescriptor, services: Services) -> Any:
    """A valid request without its optional fields."""
    request = services.valid(method.name)
    for field in method.input_type.fields:
        if field.has_presence and field.name != "page_size" and not is_required(field):
            request.ClearField(field.name)
    return request


async def first_token(services: Services, request: Any) -> str:
    response = await services.call(request)
    assert response.next_page_token, "there is no second page"
    return str(response.next_page_token)


@every_list
async def test_token_of_another_list_is_refused(
    services: Services, method: MethodDescriptor
) -> None:
    """Tokens of all lists of all services, without filters that distinguish them."""
    found = {}
    async with services.unchanged():
        for other in LISTS:
            request = unfiltered(method, services)
            request.page_token = await first_token(services, unfiltered(other, services))
            if other is method:
                await services.call(request)
            elif differences := await services.differences(request, BAD_TOKEN):
                found[other.name] = differences
    assert found == {}


@every_list
async def test_token_with_other_filters_is_refused(
    services: Services, method: MethodDescriptor
) -> None:
    first = services.valid(method.name)
    token = await first_token(services, first)
    found = {}
    async with services.unchanged():
        for field in method.input_type.fields:
            if field.name in {"page_size", "page_token"}:
                continue
            other = OTHER_FILTERS.get(f"{method.name}.{field.name}") or OTHER_FILTERS[field.name]
            request = services.valid(method.name, **{field.name: other}, page_token=token)
            found[field.name] = await services.differences(request, BAD_TOKEN)
            if field.has_presence and first.HasField(field.name) and not is_required(field):
                request.ClearField(field.name)
                found[f"no {field.name}"] = await services.differences(request, BAD_TOKEN)
    assert not any(found.values()), found


@every_list
async def test_forged_token_is_refused(services: Services, method: MethodDescriptor) -> None:
    """Well-formed outside, with content that this list cannot have returned."""
    token = await first_token(services, services.valid(method.name))
    filters, key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    forged: list[object] = [[filters, key[:-1]], [filters, [*key, 1]], [key, filters]]
    forged += [[[*filters, ""], key], [filters[:-1] if filters else ["x"], key]]
    for position, part in enumerate(key):
        others = [other(part) for other in OTHER_TYPES]
        if isinstance(part, int):
            # In a key with an id, the number is a time: the years end long before 64 bits do.
            others += OTHER_NUMBERS + ([2**63 - 1, -(2**63) + 1] if len(key) > 1 else [])
        else:
            others += [f"{part}\0" if other == "\0" else other for other in OTHER_TEXTS]
            if method.name == "ListSeats":
                others.remove("nonsense")  # a seat may have this label
            others += ["x" * 600, "-" * 36] if len(key) > 1 else []
        forged += [[filters, [*key[:position], other, *key[position + 1 :]]] for other in others]
    found = {}
    async with services.unchanged():
        for content in forged:
            request = services.valid(method.name, page_token=token_of(content))
            if differences := await services.differences(request, BAD_TOKEN):
                found[str(content)[:200]] = differences
    assert found == {}


@every_list
async def test_page_size_above_the_largest_is_reduced(
    services: Services, method: MethodDescriptor
) -> None:
    everything = await services.call(services.valid(method.name, page_size=2**31 - 1))
    assert not everything.next_page_token
    assert await services.call(services.valid(method.name, page_size=0)) == everything


@every_list
async def test_a_page_ends_before_it_has_too_many_bytes(
    services: Services, method: MethodDescriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One item always fits; the pages together are the whole list."""
    request = services.valid(method.name, page_size=500)
    (everything,) = await pages_of(services.call, request)
    assert len(everything) > 1
    monkeypatch.setattr(paging, "BYTES_MAX", 1)
    pages = await pages_of(services.call, request)
    assert pages == [[each] for each in everything]
