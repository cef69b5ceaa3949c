"""Every method of the contract has a method in the client and tests of bad input.

`make check` runs this file: a method that is added to a .proto file alone fails it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, Final, get_type_hints

import pytest
import pytest_asyncio
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from tally_client import Tally
from tally_client.calls import Listing, Unary, Watch
from tests.integration.contract import strangers
from tests.integration.contract.invalid_values import kind_of
from tests.integration.contract.valid_requests import Seed, fields_by_method
from tests.support.contract import BULK, METHODS, every_method, is_list

_IDS: Final[dict[str, Any]] = {
    name: {} if name == "product_of_price" else "id" if kind is str else ["id"] * 4
    for name, kind in get_type_hints(Seed).items()
}
SEED: Final = Seed(**_IDS)
"""Ids of nothing: only the names of the methods count here."""


@pytest_asyncio.fixture
async def tally() -> AsyncIterator[Tally]:
    async with Tally() as opened:
        yield opened


def attribute(method: MethodDescriptor) -> tuple[str, str]:
    """The client's attributes for the method's service and for the method."""
    service = method.containing_service.name.removesuffix("Service").lower()
    return service, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()


@every_method
async def test_method_has_a_method_in_the_client(method: MethodDescriptor, tally: Tally) -> None:
    service, name = attribute(method)
    found: Any = getattr(getattr(tally, service, None), name, None)
    assert found is not None, f"add {name} to tally_client/services.py"
    assert found.path == f"/{method.containing_service.full_name}/{method.name}"
    assert type(found) is (
        Watch if method.server_streaming else Listing if is_list(method) else Unary
    )
    assert (found.timeout_s is None) is method.server_streaming


async def test_client_has_no_other_methods(tally: Tally) -> None:
    found = [
        (service, name)
        for service, methods in vars(tally).items()
        if not service.startswith("_")
        for name in vars(methods)
        if not name.startswith("_")
    ]
    assert sorted(found) == sorted(attribute(method) for method in METHODS)


def broken_fields(method: MethodDescriptor) -> list[FieldDescriptor]:
    """The fields that test_bad_input breaks, one by one."""
    fields = [field for field in method.input_type.fields if field.type != field.TYPE_BOOL]
    for field in tuple(fields):
        if field.is_repeated and field.message_type is not None and method.name not in BULK:
            fields += field.message_type.fields
    return fields


@every_method
def test_method_has_tests_of_bad_input(method: MethodDescriptor) -> None:
    tables = "tests/integration/contract"
    assert method.name in fields_by_method(SEED), f"add it to {tables}/valid_requests.py"
    for field in broken_fields(method):
        try:
            kind_of(field)
        except KeyError:
            pytest.fail(f"add the invalid values of {field.name} to {tables}/invalid_values.py")
    takes_user = "user_id" in method.input_type.fields_by_name
    known = method.name in strangers.REFUSED.keys() | strangers.SERVED
    assert known is takes_user, f"name it in {tables}/strangers.py if it takes a user_id"


def test_tables_of_bad_input_have_no_other_methods() -> None:
    names = {method.name for method in METHODS}
    assert fields_by_method(SEED).keys() <= names
    assert strangers.REFUSED.keys() | strangers.SERVED <= names
    assert not strangers.REFUSED.keys() & strangers.SERVED
