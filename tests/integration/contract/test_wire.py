"""Bytes that are not a request: refused by every method, and the server goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError

from common.rpc import reflection
from tests.integration.common.test_reflection import services_of
from tests.integration.contract.invalid_values import BULK_BYTES, is_required
from tests.integration.contract.services import DEADLINE_S, Services
from tests.integration.contract.statuses import WHOLE_REQUEST, Status, invalid
from tests.integration.contract.valid_requests import fresh
from tests.support.contract import (
    BULK,
    METHODS,
    METHODS_BY_NAME,
    SERVICES,
    every_method,
    is_read,
    message_class,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOTHING_REQUIRED = {"ListCampaigns", "ListProducts", "ListSagas"}
LENGTH_DELIMITED, GROUP_BEGIN, GROUP_END, FIXED_32 = 2, 3, 4, 5


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def tagged(number: int, wire_type: int, content: bytes = b"") -> bytes:
    length = varint(len(content)) if wire_type == LENGTH_DELIMITED else b""
    return varint(number << 3 | wire_type) + length + content


def malformed(method: MethodDescriptor, whole: bytes) -> Iterator[bytes]:
    """Bytes that do not parse; the first are a valid request's own, cut short."""
    parse = message_class(method.input_type).FromString
    cut = 0
    for length in range(len(whole) - 1, 0, -1):
        try:
            parse(whole[:length])
        except DecodeError:
            yield whole[:length]
            cut += 1
        if cut == 6:
            break
    yield from (b"\xff", b"\x80", b"\0\0", b"\xff" * 64, b"\x0b" * 5_000, b"\x0c", b"\x0e\x00")
    yield whole + tagged(1999, LENGTH_DELIMITED) + b"\xff" * 11
    yield whole + tagged(1999, GROUP_BEGIN) * 5_000 + tagged(1999, GROUP_END) * 5_000
    yield whole + tagged(1999, LENGTH_DELIMITED)[:-1] + varint(2**31 - 1)
    for field in method.input_type.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in (b"\xff", b"a\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"):
                yield whole + tagged(field.number, LENGTH_DELIMITED, text)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            yield whole + tagged(field.number, LENGTH_DELIMITED, b"\xff")
            yield whole + tagged(field.number, LENGTH_DELIMITED, tagged(1, LENGTH_DELIMITED)[:-1])


@every_method
async def test_bytes_that_are_not_a_message_are_refused(
    services: Services, method: MethodDescriptor
) -> None:
    found = []
    async with services.unchanged():
        for raw in malformed(method, services.valid(method.name).SerializeToString()):
            with pytest.raises(DecodeError):
                message_class(method.input_type).FromString(raw)
            differences = await services.raw_differences(method, raw, WHOLE_REQUEST)
            found += [f"{raw[:40]!r}: {each}" for each in differences]
    assert found == []


@every_method
async def test_missing_required_fields_are_all_named(
    services: Services, method: MethodDescriptor
) -> None:
    """In an empty request, and in one whose fields all have a wrong wire type."""
    required = {field.name for field in method.input_type.fields if is_required(field)}
    required |= {each.name for each in method.input_type.oneofs if not each.name.startswith("_")}
    assert (not required) == (method.name in NOTHING_REQUIRED)
    mistyped = b"".join(
        tagged(field.number, FIXED_32, b"\x01\x02\x03\x04") for field in method.input_type.fields
    )
    async with services.unchanged():
        for raw in (b"", mistyped):
            if required:
                assert await services.raw_differences(method, raw, invalid(*required)) == []
            else:
                await services.call_raw(method, raw)


@every_method
async def test_request_above_the_message_limit_is_refused(
    services: Services, method: MethodDescriptor
) -> None:
    """Valid but for its size; the replica answers the next request."""
    large = services.valid(method.name).SerializeToString()
    limit = BULK_BYTES if method.name in BULK else 65_536
    large += tagged(1999, LENGTH_DELIMITED, b"x" * limit)
    async with services.unchanged():
        assert await services.raw_differences(method, large, WHOLE_REQUEST) == []
        await services.call(services.valid("GetBalance"))
        await services.call(services.valid("GetCart"))


@pytest.mark.parametrize(
    "method", [method for method in METHODS if is_read(method)], ids=lambda method: method.name
)
async def test_unknown_fields_of_a_read_are_ignored(
    services: Services, method: MethodDescriptor
) -> None:
    """A client may be newer than the server."""
    request = services.valid(method.name)
    newer = request.SerializeToString() + tagged(1999, LENGTH_DELIMITED, b"new")
    async with services.unchanged():
        assert await services.call_raw(method, newer) == await services.call(request)


async def test_unknown_fields_of_a_mutation_are_not_content(services: Services) -> None:
    request = services.valid("ChargeBalance")
    newer = request.SerializeToString() + tagged(1999, LENGTH_DELIMITED, b"new")
    first = await services.call_raw(METHODS_BY_NAME["ChargeBalance"], newer)
    again = await services.call(request)
    assert again.replayed
    assert again.entry == first.entry


@pytest.mark.parametrize("service", ["balance", "coupon", "order", "payment"])
async def test_unknown_method_is_unimplemented(services: Services, service: str) -> None:
    path = f"/tally.{service}.v1.{service.title()}Service/{fresh()}"
    opened: Any = services.channels[service]
    async with services.unchanged():
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await opened.unary_unary(path)(b"", timeout=DEADLINE_S)
    status = Status.of(error.value)
    assert status.code is grpc.StatusCode.UNIMPLEMENTED
    assert status.leaks() == []


@pytest.mark.parametrize("service", ["balance", "coupon", "order", "payment"])
async def test_servers_serve_the_contract_and_nothing_else(
    services: Services, service: str
) -> None:
    """Nothing that no page lists and no test calls: OWASP's API9."""
    served = await services_of(services.channels[service], reflection.V1)
    package = f"tally.{service}.v1"
    contract = {each.full_name for each in SERVICES if each.file.package == package}
    assert served - contract == {"grpc.health.v1.Health", *reflection.NAMES}
    assert contract <= served
