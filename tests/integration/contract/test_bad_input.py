"""Every field of every method with every invalid value: the status names it, and nothing is done.

From the descriptors: `make check` (tests/support/contract_gaps.py) fails until a new method has a
valid request, and its fields have kinds.
"""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from tally.type.v1.money_pb2 import Money
from tests.integration.contract import strangers
from tests.integration.contract.invalid_values import invalid_requests
from tests.integration.contract.services import Services
from tests.integration.contract.statuses import NOT_RETRYABLE, Status, invalid, not_found
from tests.support.contract import METHODS

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHOICES = [("CreateCampaign", "discount"), ("GetSaga", "target")]


async def test_tables_have_every_choice_and_the_fields_of_money() -> None:
    assert [
        (method.name, choice.name)
        for method in METHODS
        for choice in method.input_type.oneofs
        if not choice.name.startswith("_")  # the compiler's own, of an optional field
    ] == CHOICES
    assert {field.name for field in Money.DESCRIPTOR.fields} == {"currency_code", "amount_minor"}


@pytest.mark.parametrize(
    ("method", "field"),
    [
        pytest.param(method, field.name, id=f"{method.name}.{field.name}")
        for method in METHODS
        for field in method.input_type.fields
        if field.type != field.TYPE_BOOL  # every value is valid
    ],
)
async def test_a_broken_field_is_named_and_nothing_is_done(
    services: Services, method: MethodDescriptor, field: str
) -> None:
    descriptor = method.input_type.fields_by_name[field]
    cases = list(invalid_requests(services.valid(method.name), descriptor))
    assert cases
    found = []
    async with services.unchanged():
        for case in cases:
            differences = await services.differences(case.request, case.expected)
            found += [f"{case.label}: {each}" for each in differences]
    assert found == []


@pytest.mark.parametrize(("name", "choice"), CHOICES)
async def test_missing_choice_is_named(services: Services, name: str, choice: str) -> None:
    request = services.valid(name)
    request.ClearField(choice)
    async with services.unchanged():
        assert await services.differences(request, invalid(choice)) == []


@pytest.mark.parametrize(("name", "reason"), strangers.REFUSED.items())
async def test_user_without_anything_is_refused(services: Services, name: str, reason: str) -> None:
    request = services.valid(name, user_id="nobody")
    async with services.unchanged():
        assert await services.differences(request, not_found(reason)) == []


@pytest.mark.parametrize("code", ["ABC", "KWR", "ZZZ", "DEM", "XXX", "XTS", "XAU"])
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("ChargeBalance", "amount"),
        ("CreateCampaign", "fixed_discount"),
        ("CreateCampaign", "max_discount"),
        ("CreateCampaign", "min_order_amount"),
        ("CreateProduct", "price"),
    ],
)
async def test_nothing_is_opened_in_a_currency_that_is_not_listed(
    services: Services, name: str, field: str, code: str
) -> None:
    request = services.valid(name)
    if name == "CreateCampaign":
        request.ClearField("max_discount")
        request.ClearField("min_order_amount")
        request.percent_discount = 1
    getattr(request, field).CopyFrom(Money(currency_code=code, amount_minor=1))
    async with services.unchanged():
        assert await services.differences(request, invalid(f"{field}.currency_code")) == []


async def test_campaign_must_end_after_its_start(services: Services) -> None:
    request = services.valid("CreateCampaign")
    found = []
    async with services.unchanged():
        # The last one ends later, but within the microsecond of its start.
        for seconds, nanos in ((0, 0), (0, -1), (-1, 0), (-(10**8), 0), (0, 998)):
            request.end_time.CopyFrom(request.start_time)
            request.start_time.nanos = 1
            request.end_time.nanos = 1 + nanos
            request.end_time.seconds += seconds
            found += await services.differences(request, invalid("end_time"))
    assert found == []


async def test_valid_requests_succeed(services: Services) -> None:
    """The control of this module: only the invalid values were refused."""
    found = {}
    for method in METHODS:
        request = services.valid(method.name)
        if method.name in {"RetrySaga", "ResolveSaga"}:
            # Valid, but no saga needs attention.
            assert await services.differences(request, NOT_RETRYABLE) == []
        elif status := await services.status(method, request.SerializeToString()):
            found[method.name] = status
    assert found == {}


async def test_the_services_use_their_runtime_roles(services: Services) -> None:
    """What this module's requests need, the restricted roles may do (``test_roles``)."""
    for service, database in services.databases.items():
        rows = await database.fetch(
            "SELECT DISTINCT usename FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert [role for (role,) in rows] == [f"tally_{service}_runtime"]


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
async def test_leak_is_detected(text: str) -> None:
    """The control of every check for leaks."""
    assert Status(grpc.StatusCode.INTERNAL, text).leaks()


@pytest.mark.parametrize(
    "name", ["ChargeBalance", "CreateCampaign", "CreateProduct", "CancelPayment"]
)
async def test_a_write_is_noticed(services: Services, name: str) -> None:
    """The control of ``unchanged``: a call of each service that writes."""
    with pytest.raises(AssertionError, match="written to"):
        async with services.unchanged():
            await services.call(services.valid(name))
