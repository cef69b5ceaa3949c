"""Metadata sizes: what clients may send, and the largest status that they get."""

from __future__ import annotations

from collections import Counter
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common.errors import Code, FieldViolation, QuotaViolation, RemoteRefusal
from common.rpc import server, status
from common.rpc.status import from_rpc_error
from tests.integration.common.echo import Echo, EchoStub, connected, raising, serving

ENTRY_BYTES = 32
"""What HTTP/2 counts for an entry, in addition to its name and value."""
OTHERS_BYTES_MAX = 1_000
"""More than gRPC itself sends with a call: about 450 bytes."""
TRIES = 12
MIXED_TRIES_MAX = 200
ACCEPTED = "accepted"
CLIENTS_BYTES_MAX = 8 * 1024
"""gRPC's default in most languages."""
REPLICA = "r" * 64


async def ends(echo: EchoStub, value_bytes: int, calls: int) -> Counter[str]:
    """How calls with an entry of this size end."""
    found: Counter[str] = Counter()
    for _ in range(calls):
        entry = ("tally-test", "x" * value_bytes)
        try:
            await echo.Say(StringValue(), metadata=(entry,), timeout=60)
        except grpc.aio.AioRpcError as error:
            assert from_rpc_error(error).reason == ""
            found[error.code().name] += 1
        else:
            found[ACCEPTED] += 1
    return found


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param(server.METADATA_BYTES_MAX, id="default"),
        # The default is gRPC's default too. The others show that the option has an effect.
        pytest.param(server.METADATA_BYTES_MAX // 2, id="smaller"),
        pytest.param(server.METADATA_BYTES_MAX * 2, id="larger"),
    ],
)
async def test_metadata_is_accepted_to_the_limit_and_refused_above_its_double(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the method. In between gRPC refuses at random, more often the larger it is."""
    reached = 0

    async def say(request: StringValue, context: Any) -> StringValue:
        nonlocal reached
        reached += 1
        return request

    monkeypatch.setattr(server, "METADATA_BYTES_MAX", limit)
    async with connected(Echo(say)) as client:
        echo = client.echo
        below = limit - OTHERS_BYTES_MAX - len("tally-test") - ENTRY_BYTES
        assert await ends(echo, below, TRIES) == {ACCEPTED: TRIES}
        assert reached == TRIES
        above = 2 * limit - len("tally-test") - ENTRY_BYTES
        assert await ends(echo, above, TRIES) == {"RESOURCE_EXHAUSTED": TRIES}
        assert reached == TRIES
        between: Counter[str] = Counter()
        while len(between) < 2 and between.total() < MIXED_TRIES_MAX:
            between += await ends(echo, 3 * limit // 2, 1)
        assert set(between) == {ACCEPTED, "RESOURCE_EXHAUSTED"}
        assert reached == TRIES + between[ACCEPTED]


def largest(message: str) -> RemoteRefusal:
    """A refusal with all details full, and with the largest status."""
    long = "가" * 1_000

    def with_subjects(length: int) -> RemoteRefusal:
        return RemoteRefusal(
            Code.UNAVAILABLE,  # the code that always has pushback metadata
            "A" * 63,  # as long as AIP-193 allows
            message,
            {f"{number}".rjust(64, "k"): long for number in range(status.METADATA_MAX + 1)},
            fields=(FieldViolation(long, long),) * (status.FIELDS_MAX + 1),
            quota=(QuotaViolation("x" * length, long),) * (status.QUOTA_MAX + 1),
            retry_after_s=86_400.0,
        )

    lengths = range(1, status.NAME_BYTES_MAX + 1)
    sizes = {length: status.to_status(with_subjects(length)).ByteSize() for length in lengths}
    return with_subjects(max(lengths, key=sizes.__getitem__))


@pytest.mark.parametrize(
    ("message", "binary"),
    [
        pytest.param("x" * status.MESSAGE_BYTES_MAX, True, id="ascii-raw"),
        pytest.param("x" * status.MESSAGE_BYTES_MAX, False, id="ascii-base64"),
        pytest.param("가" * (status.MESSAGE_BYTES_MAX // 3), True, id="percent-encoded-raw"),
        pytest.param("가" * (status.MESSAGE_BYTES_MAX // 3), False, id="percent-encoded-base64"),
    ],
)
async def test_the_largest_status_arrives_in_the_metadata_that_clients_accept(
    message: str, *, binary: bool
) -> None:
    """Whole, at clients that accept binary metadata and at those, most, that need base64."""
    refusal = largest(message)
    sent = status.to_status(refusal)
    assert sent.message == message
    assert len(sent.details) == 4
    options = [
        ("grpc.max_metadata_size", CLIENTS_BYTES_MAX),
        # Without it a status that is slightly too large would arrive most of the time.
        ("grpc.absolute_max_metadata_size", CLIENTS_BYTES_MAX),
        ("grpc.http2.true_binary", int(binary)),
    ]
    async with (
        serving(raising(refusal), replica=REPLICA) as (address, _),
        grpc.aio.insecure_channel(address, options=options) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EchoStub(channel).Say(StringValue(), timeout=60)
    assert caught.value.details() == message
    trailing = dict(tuple(caught.value.trailing_metadata()))
    assert trailing[status.DETAILS_KEY] == sent.SerializeToString()
    assert trailing["tally-replica"] == REPLICA
    assert trailing["grpc-retry-pushback-ms"] == "86400000"


async def test_control_a_client_that_accepts_less_gets_another_error() -> None:
    options = [
        ("grpc.max_metadata_size", status.STATUS_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", status.STATUS_BYTES_MAX),
    ]
    async with (
        serving(raising(largest("x" * status.MESSAGE_BYTES_MAX))) as (address, _),
        grpc.aio.insecure_channel(address, options=options) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EchoStub(channel).Say(StringValue(), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
