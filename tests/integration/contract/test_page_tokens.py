"""A page token is good for the list and the filters it was given for, and for nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from tally.order.v1.order_pb2 import Order, Saga
from tests.integration.contract.breaks import token_of
from tests.integration.contract.requests import name_of, valid
from tests.integration.contract.told import BAD_TOKEN, Told
from tests.integration.contract.world import METHODS, OTHER_USER, World
from tests.support.orders import UNKNOWN_ID

pytestmark = pytest.mark.asyncio(loop_scope="module")

LISTS = [method for method in METHODS if "page_token" in method.input_type.fields_by_name]
FILTERS: dict[str, Any] = {
    "user_id": OTHER_USER,
    "currency_code": "USD",
    "state": {"ListOrders": Order.STATE_PENDING, "ListSagas": Saga.STATE_COMPENSATED},
    "order_id": "order-2",
}
"""Another value of each filter; a list may have several."""
every_list = pytest.mark.parametrize("method", LISTS, ids=name_of)


def unfiltered(method: MethodDescriptor, world: World) -> Any:
    """A valid request without what is optional."""
    request = valid(method, world)
    for field in method.input_type.fields:
        if field.has_presence and field.name != "page_size":
            request.ClearField(field.name)
    return request


async def first_token(world: World, method: MethodDescriptor, request: Any) -> str:
    response = await world.call(method, request)
    assert response.next_page_token, f"{method.name} has no second page"
    return str(response.next_page_token)


async def verdict(world: World, method: MethodDescriptor, request: Any) -> list[str]:
    """What is wrong with what a bad token was told."""
    try:
        await world.call(method, request)
    except grpc.aio.AioRpcError as error:
        return Told.by(error).differences(BAD_TOKEN)
    return ["was taken"]


@every_list
async def test_a_token_goes_on_with_its_own_list_only(
    world: World, method: MethodDescriptor
) -> None:
    """Tokens of all lists of all services, given to this one; no filter tells them apart."""
    found = {}
    async with world.untouched():
        for other in LISTS:
            request = unfiltered(method, world)
            request.page_token = await first_token(world, other, unfiltered(other, world))
            if other is method:
                await world.call(method, request)
            elif told := await verdict(world, method, request):
                found[other.name] = told
    assert found == {}


@every_list
async def test_a_token_is_refused_with_other_filters(
    world: World, method: MethodDescriptor
) -> None:
    filters = [
        field for field in method.input_type.fields if field.name not in {"page_size", "page_token"}
    ]
    token = await first_token(world, method, valid(method, world))
    found = {}
    async with world.untouched():
        for field in filters:
            other = FILTERS[field.name]
            changed = valid(method, world)
            setattr(changed, field.name, other[method.name] if isinstance(other, dict) else other)
            changed.page_token = token
            found[field.name] = await verdict(world, method, changed)
            if field.has_presence:
                changed.ClearField(field.name)
                found[f"no {field.name}"] = await verdict(world, method, changed)
    assert not any(found.values()), found


@every_list
async def test_a_token_that_was_tampered_with_is_refused(
    world: World, method: MethodDescriptor
) -> None:
    """Well-formed on the outside, and nothing that this list could have given out."""
    token = await first_token(world, method, valid(method, world))
    filters, key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    changes: list[Callable[[Any], object]] = [
        *(
            lambda _: None,
            lambda _: True,
            lambda _: 1.5,
            lambda part: [part],
            lambda part: {"a": part},
        ),
        lambda part: str(part) if isinstance(part, int) else 0,
        lambda part: 2**63 if isinstance(part, int) else "nonsense",
        lambda part: -(2**63) if isinstance(part, int) else f"{part}\0",
        lambda part: 10**400 if isinstance(part, int) else "\ud800",
        lambda part: float("nan") if isinstance(part, int) else UNKNOWN_ID.upper(),
        lambda part: float("inf") if isinstance(part, int) else "",
    ]
    if len(key) > 1:
        # The last microsecond of 64 bits is no time: the years end long before.
        changes.append(lambda part: 2**63 - 1 if isinstance(part, int) else "x" * 600)
        changes.append(lambda part: -(2**63) + 1 if isinstance(part, int) else "-" * 36)
    tampered: list[object] = [[filters, key[:-1]], [filters, [*key, 1]], [key, filters]]
    tampered += [[[*filters, ""], key], [filters[:-1] if filters else ["x"], key]]
    for position, part in enumerate(key):
        for change in changes:
            tampered.append([filters, [*key[:position], change(part), *key[position + 1 :]]])
    found = {}
    async with world.untouched():
        for value in tampered:
            request = valid(method, world)
            request.page_token = token_of(value)
            if told := await verdict(world, method, request):
                found[str(value)[:200]] = told
    assert found == {}


@every_list
async def test_a_page_size_beyond_the_largest_is_read_as_that(
    world: World, method: MethodDescriptor
) -> None:
    request = valid(method, world)
    request.page_size = 2**31 - 1
    everything = await world.call(method, request)
    assert not everything.next_page_token
    request.page_size = 0
    assert await world.call(method, request) == everything
