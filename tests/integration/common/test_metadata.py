"""Metadata sizes: what clients may send, and the largest status that they get."""

from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError

from common.errors import Code, FieldViolation, QuotaViolation, RemoteRefusal
from common.rpc import server, status
from tally_client.rpc import answer
from tests.integration.common.echo import (
    Echo,
    EchoStub,
    Raising,
    connected,
    refusal_of,
    serving,
)

ENTRY_BYTES = len("tally-test") + 32
"""The name of the test's entry, and what HTTP/2 counts for an entry in addition."""
OTHERS_BYTES_MAX = 1_000
"""More than gRPC itself sends with a call: about 450 bytes."""
TRIES = 12
CLIENTS_BYTES_MAX = 8 * 1024
"""gRPC's default in most languages."""
REPLICA = "r" * 64


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param(server.METADATA_BYTES_MAX, id="default"),
        # The default is gRPC's default too. The other shows that the option has an effect.
        pytest.param(server.METADATA_BYTES_MAX * 2, id="larger"),
    ],
)
async def test_metadata_is_accepted_to_the_limit_and_refused_above_its_double(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the method. In between gRPC refuses at random, more often the larger it is."""
    monkeypatch.setattr(server, "METADATA_BYTES_MAX", limit)
    below, above = limit - OTHERS_BYTES_MAX - ENTRY_BYTES, 2 * limit - ENTRY_BYTES
    echo = Echo()
    async with connected(echo) as client:
        for _ in range(TRIES):
            await client.say(metadata=(("tally-test", "x" * below),), timeout=60)
            call = client.say(metadata=(("tally-test", "x" * above),), timeout=60)
            refusal = await refusal_of(call)
            assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "")
    assert len(echo.received) == TRIES


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


async def error_at_client(refusal: RemoteRefusal, *, accepts: int, binary: int) -> AioRpcError:
    """What a client gets that accepts so many bytes of metadata."""
    options = [
        ("grpc.max_metadata_size", accepts),
        # Without it a status that is slightly too large would arrive most of the time.
        ("grpc.absolute_max_metadata_size", accepts),
        ("grpc.http2.true_binary", binary),
    ]
    async with (
        serving(Raising(refusal), replica=REPLICA) as (address, _),
        grpc.aio.insecure_channel(address, options=options) as channel,
    ):
        with pytest.raises(AioRpcError) as caught:
            await EchoStub(channel).say(timeout=60)
        return caught.value


@pytest.mark.parametrize("binary", [1, 0], ids=["raw", "base64"])
@pytest.mark.parametrize(
    "message",
    [
        pytest.param("x" * status.MESSAGE_BYTES_MAX, id="ascii"),
        pytest.param("가" * (status.MESSAGE_BYTES_MAX // 3), id="percent-encoded"),
    ],
)
async def test_the_largest_status_arrives_in_the_metadata_that_clients_accept(
    message: str, binary: int
) -> None:
    """Whole, at clients that accept binary metadata and at those, most, that need base64.

    The control is a client that accepts less.
    """
    refusal = largest(message)
    sent = status.to_status(refusal)
    assert sent.message == message
    assert len(sent.details) == 4
    error = await error_at_client(refusal, accepts=CLIENTS_BYTES_MAX, binary=binary)
    assert error.details() == message
    trailing = dict(tuple(error.trailing_metadata()))
    assert trailing[answer.DETAILS_KEY] == sent.SerializeToString()
    assert trailing["tally-replica"] == REPLICA
    assert trailing["grpc-retry-pushback-ms"] == "-1"
    error = await error_at_client(refusal, accepts=status.STATUS_BYTES_MAX, binary=binary)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
