"""Bytes that are no request: refused as such, whoever sends them, and the server goes on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError

from tests.integration.contract.breaks import is_required
from tests.integration.contract.requests import name_of, valid
from tests.integration.contract.told import TOO_LARGE, Told, invalid
from tests.integration.contract.world import (
    DEADLINE_S,
    METHODS,
    World,
    fresh,
    message_class,
    method_named,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

every_method = pytest.mark.parametrize("method", METHODS, ids=name_of)

MALFORMED = invalid("request")
NOTHING_REQUIRED = {"ListCampaigns", "ListProducts", "ListSagas"}
LENGTH_DELIMITED, GROUP_BEGIN, GROUP_END, FIXED_32 = 2, 3, 4, 5


async def told(world: World, method: MethodDescriptor, raw: bytes) -> Told | None:
    try:
        await world.call(method, raw)
    except grpc.aio.AioRpcError as error:
        return Told.by(error)
    return None


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
    """Bytes that do not parse, beginning with a valid request's own, cut short."""
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
async def test_bytes_that_are_no_message_are_refused(
    world: World, method: MethodDescriptor
) -> None:
    found = []
    async with world.untouched():
        for raw in malformed(method, valid(method, world).SerializeToString()):
            with pytest.raises(DecodeError):
                message_class(method.input_type).FromString(raw)
            answer = await told(world, method, raw)
            differs = ["was carried out"] if answer is None else answer.differences(MALFORMED)
            found += [f"{raw[:40]!r}: {each}" for each in differs]
    assert found == []


@every_method
async def test_a_request_without_what_is_required_is_told_all_of_it(
    world: World, method: MethodDescriptor
) -> None:
    """The same for an empty one as for one whose fields are all of a wrong wire type."""
    needed = {field.name for field in method.input_type.fields if is_required(field)}
    needed |= {each.name for each in method.input_type.oneofs if not each.name.startswith("_")}
    assert (not needed) == (method.name in NOTHING_REQUIRED)
    mistyped = b"".join(
        tagged(field.number, FIXED_32, b"\x01\x02\x03\x04") for field in method.input_type.fields
    )
    async with world.untouched():
        for raw in (b"", mistyped):
            answer = await told(world, method, raw)
            if needed:
                assert answer is not None
                assert answer.differences(invalid(*needed)) == []
            else:
                assert answer is None


@every_method
async def test_noise_is_refused_or_means_nothing(world: World, method: MethodDescriptor) -> None:
    noise = random.Random(f"noise for {method.name}")
    async with world.untouched():
        for _ in range(10):
            answer = await told(world, method, noise.randbytes(noise.randrange(1, 200)))
            if answer is None:
                assert method.name in NOTHING_REQUIRED
            else:
                assert answer.reason in {"INVALID_FIELD", "INVALID_PAGE_TOKEN"}
                assert answer.leaks() == []


@every_method
async def test_a_request_beyond_the_limit_of_a_message_is_refused_unread(
    world: World, method: MethodDescriptor
) -> None:
    """Valid but for its size, and the replica answers the next one."""
    whole = valid(method, world).SerializeToString()
    async with world.untouched():
        answer = await told(world, method, whole + tagged(1999, LENGTH_DELIMITED, b"x" * 65_536))
        assert answer is not None
        assert answer.differences(TOO_LARGE) == []
        await world.call(method_named("GetBalance"), valid(method_named("GetBalance"), world))
        await world.call(method_named("GetCart"), valid(method_named("GetCart"), world))


@every_method
async def test_unknown_fields_of_a_read_are_ignored(world: World, method: MethodDescriptor) -> None:
    """A client may be newer than the server."""
    if not method.name.startswith(("Get", "List", "Watch")):
        return
    request = valid(method, world)
    async with world.untouched():
        answer = await world.call(
            method, request.SerializeToString() + tagged(1999, LENGTH_DELIMITED, b"new")
        )
        assert answer == await world.call(method, request)


async def test_unknown_fields_of_a_mutation_are_no_content(world: World) -> None:
    method = method_named("ChargeBalance")
    raw = valid(method, world).SerializeToString()
    first = await world.call(method, raw + tagged(1999, LENGTH_DELIMITED, b"new"))
    again = await world.call(method, raw)
    assert again.replayed
    assert again.entry == first.entry


@pytest.mark.parametrize("service", ["balance", "coupon", "order", "payment"])
async def test_a_method_that_does_not_exist(world: World, service: str) -> None:
    name = f"/tally.{service}.v1.{service.title()}Service/{fresh()}"
    async with world.untouched():
        with pytest.raises(grpc.aio.AioRpcError) as error:
            opened: Any = world.channels[service]
            await opened.unary_unary(name)(b"", timeout=DEADLINE_S)
        answer = Told.by(error.value)
        assert answer.code is grpc.StatusCode.UNIMPLEMENTED
        assert answer.leaks() == []
