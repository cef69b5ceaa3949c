"""Calls to replicas: round robin, deadlines, typed refusals, bounded retries."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common import deadlines, metrics
from common.errors import Code, DatabaseUnavailable, DeadlineTooShort, Refusal, RemoteRefusal
from tests.integration.common.callers import replicas_seen, until_seen
from tests.integration.common.echo import NAME, Echo, Probe, Raising, SoldOut, client_of, serving
from tests.support.fake_server import garbled_server
from tests.support.time_limits import LONG_S


async def test_calls_are_spread_over_the_replicas_in_turn() -> None:
    async with (
        serving(replica="a") as (a, _),
        serving(replica="b") as (b, _),
        client_of(a, b) as client,
    ):
        await until_seen(client, {"a", "b"})
        assert await replicas_seen(client, 40) == {"a": 20, "b": 20}


async def test_a_replica_that_is_not_ready_gets_no_calls_until_it_is() -> None:
    probe = Probe("its database is gone")
    async with (
        serving(replica="well") as (well, _),
        serving(replica="ill", ready=probe) as (ill, _),
        client_of(well, ill) as client,
    ):
        assert await replicas_seen(client, 40) == {"well": 40}
        probe.problem = ""
        await until_seen(client, {"well", "ill"})
        probe.problem = "gone again"
        await until_seen(client, {"well"})


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DatabaseUnavailable, "retry_after_s", 0.01)


@pytest.mark.parametrize(
    ("kind", "attempts_max", "calls"),
    [(SoldOut, 3, 1), (DatabaseUnavailable, 1, 1), (DatabaseUnavailable, 3, 3)],
)
async def test_the_last_refusal_arrives_after_bounded_attempts(
    kind: type[Refusal], attempts_max: int, calls: int
) -> None:
    """It is not retried unless a repetition may succeed."""
    echo = Raising(*(kind(number=str(number)) for number in range(1, 9)))
    async with serving(echo) as (address, _), client_of(address) as client:
        with pytest.raises(RemoteRefusal) as caught:
            await client.call(
                client.stub.Say, StringValue(), limit_s=5.0, attempts_max=attempts_max
            )
    refusal = caught.value
    assert (refusal.code, refusal.reason) == (kind.code, kind.reason)
    assert refusal.metadata == {"number": str(calls)}
    assert len(echo.received) == calls


async def test_a_retryable_refusal_is_retried_and_counted() -> None:
    echo = Raising(DatabaseUnavailable(), DatabaseUnavailable())
    before = metrics.RETRIES.labels("StringValue", "UNAVAILABLE")._value.get()
    async with serving(echo) as (address, _), client_of(address) as client:
        response = await client.call(client.stub.Say, StringValue(value="there"), limit_s=5.0)
    assert response.value == "there"
    assert len(echo.received) == 3
    assert metrics.RETRIES.labels("StringValue", "UNAVAILABLE")._value.get() == before + 2


async def test_the_called_service_gets_the_shorter_of_limit_and_deadline() -> None:
    echo = Echo()
    async with serving(echo) as (address, _), client_of(address) as client:
        for deadline_s, limit_s in ((20.0, 100.0), (100.0, 20.0), (None, 50.0)):
            with deadlines.within(deadline_s):
                await client.call(client.stub.Say, StringValue(), limit_s=limit_s)
        with deadlines.within(0.0), pytest.raises(DeadlineTooShort):
            await client.call(client.stub.Say, StringValue(), limit_s=5.0)
    assert [round(call.left_s, -1) for call in echo.received] == [20.0, 20.0, 50.0]


async def test_an_unreachable_service_is_a_refusal_without_reason() -> None:
    async with serving() as (address, _):
        pass
    async with client_of(address) as client:
        with pytest.raises(RemoteRefusal) as caught:
            await client.call(client.stub.Say, StringValue(), limit_s=5.0, attempts_max=2)
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "")


async def test_a_response_that_cannot_be_read_is_no_reply() -> None:
    """gRPC returns None for it, as if the call had succeeded."""
    async with garbled_server() as address, client_of(address) as client:
        with pytest.raises(RemoteRefusal) as caught:
            await client.call(client.stub.Say, StringValue(), limit_s=LONG_S, attempts_max=2)
    assert (caught.value.code, caught.value.reason) == (Code.INTERNAL, "")


async def test_a_stream_that_a_proxy_resets_is_sent_again() -> None:
    """A proxy that loses its server ends the stream; gRPC makes a bare INTERNAL of that."""
    calls = 0

    async def say(request: bytes, context: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 1:
            await context.abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2")
        return request

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Say": grpc.unary_unary_rpc_method_handler(say)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with client_of(f"127.0.0.1:{port}") as client:
        response = await client.call(client.stub.Say, StringValue(value="there"), limit_s=LONG_S)
    await server.stop(None)
    assert (response.value, calls) == ("there", 2)
