"""What a client gets for every way in which a method can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from common import deadlines, metrics
from common.errors import Code, RemoteRefusal
from common.rpc.call_log import CallLog
from common.rpc.pauses import Pauses
from common.rpc.registry import HandlerRegistry
from common.rpc.server import RECEIVE_BYTES_MAX
from common.rpc.status import from_rpc_error, is_retryable
from common.rpc.validation import MESSAGE_BYTES_MAX
from tests.integration.common.echo import (
    SAY,
    Echo,
    EchoStub,
    Held,
    Raising,
    SoldOut,
    add,
    connected,
    refusal_of,
    serving,
)
from tests.support.time_limits import LONG_S
from tests.support.waits import until_true

SECRET = "postgresql://u:hunter2@db/tally"
IN_FLIGHT = "tally_grpc_calls_in_flight"


def counted(*codes: str) -> list[float]:
    """How many calls of ``Say`` ended with each code, whatever their reason."""
    return [
        sum(
            sample.value
            for metric in metrics.CALLS.collect()
            for sample in metric.samples
            if sample.name == "tally_grpc_calls_total"
            and (sample.labels["method"], sample.labels["code"]) == (SAY, code)
        )
        for code in codes
    ]


async def ending(error: BaseException) -> tuple[RemoteRefusal, dict[str, str | bytes]]:
    """The refusal and the trailing metadata of a call whose method raises."""
    async with connected(Raising(error)) as client:
        call = client.say()
        return await refusal_of(call), dict(tuple(await call.trailing_metadata()))


# -- refusals --------------------------------------------------------------------------------------


async def test_a_refusal_arrives_whole_with_the_replicas_name() -> None:
    refusal, trailing = await ending(SoldOut(campaign_id="7"))
    assert trailing["tally-replica"] == "one"
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "SOLD_OUT")
    assert refusal.metadata == {"campaign_id": "7"}
    assert refusal.message == "Everything is gone."
    assert (refusal.quota, refusal.retry_after_s) == (SoldOut.quota, None)


@pytest.mark.parametrize(
    ("code", "retry_after_s", "pushback"),
    [
        (Code.UNAVAILABLE, 1.0, "1000"),
        (Code.ABORTED, 0.1, "100"),
        (Code.UNAVAILABLE, 5.0, "5000"),
        (Code.UNAVAILABLE, 30.0, "-1"),
        (Code.UNAVAILABLE, None, "-1"),
        (Code.ABORTED, None, None),
        (Code.FAILED_PRECONDITION, None, None),
    ],
)
async def test_pushback_metadata_matches_retry_info(
    code: Code, retry_after_s: float | None, pushback: str | None
) -> None:
    error = RemoteRefusal(code, "REASON", "No.", {}, retry_after_s=retry_after_s)
    refusal, trailing = await ending(error)
    assert refusal.retry_after_s == retry_after_s
    assert trailing.get("grpc-retry-pushback-ms") == pushback


@pytest.mark.parametrize("code", list(Code))
async def test_a_peers_bare_code_becomes_peer_unavailable(code: Code) -> None:
    """With a reason, without the transport's message, and with pushback as RetryInfo has it."""
    bare = RemoteRefusal(code, "", "failed to connect to 10.0.0.7:50051", {})
    refusal, trailing = await ending(bare)
    assert refusal.reason == "PEER_UNAVAILABLE"
    assert "10.0.0.7" not in refusal.message
    assert (refusal.retry_after_s is not None) is is_retryable(bare)
    if refusal.retry_after_s:
        expected = str(round(refusal.retry_after_s * 1000))
        assert trailing["grpc-retry-pushback-ms"] == expected


# -- defects ---------------------------------------------------------------------------------------


async def test_an_unexpected_error_returns_only_an_id_that_is_in_the_log() -> None:
    before = metrics.UNEXPECTED.labels(SAY)._value.get()
    with capture_logs() as logged:
        async with connected(Raising(ValueError(SECRET))) as client:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.say()
    error = caught.value
    refusal = from_rpc_error(error)
    assert (refusal.code, refusal.reason) == (Code.INTERNAL, "INTERNAL")
    assert set(refusal.metadata) == {"error_id"}
    received = f"{error.details()} {error.trailing_metadata()} {error.debug_error_string()}"
    assert "hunter2" not in received
    assert "ValueError" not in received
    [line] = [line for line in logged if line["event"] == "unexpected error"]
    assert (line["error_id"], line["method"]) == (refusal.metadata["error_id"], SAY)
    assert SECRET in str(line["exc_info"])
    assert metrics.UNEXPECTED.labels(SAY)._value.get() == before + 1


async def cancelled_future(request: StringValue, context: Any) -> StringValue:
    future: asyncio.Future[StringValue] = asyncio.get_running_loop().create_future()
    future.cancel()
    return await future


async def wrong_type(request: StringValue, context: Any) -> Any:
    return "not a message"


async def timeout(request: StringValue, context: Any) -> StringValue:
    raise TimeoutError


@pytest.mark.parametrize("say", [cancelled_future, wrong_type, timeout])
async def test_other_defects_of_a_method_still_give_a_status(say: Any) -> None:
    """Without a status the client would wait for ever: it has no deadline here."""
    with capture_logs():
        async with connected(Echo(say)) as client:
            assert (await refusal_of(client.say())).reason == "INTERNAL"


def test_a_method_that_is_not_implemented_is_an_error_at_registration() -> None:
    class Unimplemented(Echo):
        def Say(self, request: Any, context: Any) -> Any:  # noqa: N802
            raise NotImplementedError

    with pytest.raises(TypeError, match="EchoService/Say"):
        registry = HandlerRegistry(
            replica="one",
            calls_max=1,
            connections_max=1,
            default_deadline_s=1.0,
            log=CallLog("off"),
            pauses=Pauses(""),
        )
        add(Unimplemented(), registry)


# -- messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "code", "reason"),
    [
        (1_000, None, ""),
        (MESSAGE_BYTES_MAX + 1, Code.INVALID_ARGUMENT, "INVALID_FIELD"),
        (RECEIVE_BYTES_MAX + 1, Code.RESOURCE_EXHAUSTED, ""),
        (32 * 2**20, Code.RESOURCE_EXHAUSTED, ""),
    ],
)
async def test_a_compressed_message_counts_by_its_size_when_unpacked(
    size: int, code: Code | None, reason: str
) -> None:
    echo = Echo()
    async with (
        serving(echo) as (address, _),
        grpc.aio.insecure_channel(address, compression=grpc.Compression.Gzip) as channel,
    ):
        call = EchoStub(channel).say("x" * size)
        if code is None:
            await call
        else:
            refusal = await refusal_of(call)
            assert (refusal.code, refusal.reason) == (code, reason)
    assert len(echo.received) == (code is None)


async def test_a_message_above_the_limit_is_refused_before_the_method_runs() -> None:
    """One of exactly the limit is accepted; one above the transport's ends only its call."""
    overhead = StringValue(value="x" * 60_000).ByteSize() - 60_000
    largest = StringValue(value="x" * (MESSAGE_BYTES_MAX - overhead))
    assert largest.ByteSize() == MESSAGE_BYTES_MAX
    echo = Echo()
    async with connected(echo) as client:
        refusal = await refusal_of(client.say(largest.value + "x"))
        above_transport = await refusal_of(client.say("x" * RECEIVE_BYTES_MAX))
        assert echo.received == []
        assert await client.Say(largest) == largest
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    [violation] = refusal.fields
    assert violation.field == "request"
    assert str(MESSAGE_BYTES_MAX) in violation.description
    assert (above_transport.code, above_transport.reason) == (Code.RESOURCE_EXHAUSTED, "")


# -- deadlines and cancellation --------------------------------------------------------------------


async def test_a_method_has_the_callers_deadline_or_the_default() -> None:
    echo = Echo()
    async with connected(echo, default_deadline_s=7.0) as client:
        await client.say(timeout=100.0)
        await client.say()
    [callers, default] = echo.received
    assert 7.0 < callers.left_s <= 102.0  # gRPC rounds up what it sends
    assert 0 < default.left_s <= 7.0


@pytest.mark.parametrize("years", [1, 100])
async def test_a_deadline_of_many_years_is_a_deadline(years: int) -> None:
    """gRPC's header has at most eight digits of hours."""
    echo = Echo()
    async with connected(echo, default_deadline_s=7.0) as client:
        assert (await client.say("patient", timeout=years * 365.0 * 86_400)).value == "patient"
    [call] = echo.received
    assert call.left_s > 86_400


async def test_calls_at_the_same_time_each_have_their_own_deadline() -> None:
    both = asyncio.Barrier(2)
    left: dict[str, float] = {}

    async def say(request: StringValue, context: Any) -> StringValue:
        await both.wait()
        left[request.value] = deadlines.remaining() or 0.0
        await both.wait()
        return request

    async with connected(Echo(say)) as client:
        await asyncio.gather(client.say("short", timeout=60.0), client.say("long", timeout=600.0))
    assert 0.0 < left["short"] <= 62.0
    assert left["long"] > 500.0


async def test_a_call_with_too_little_time_is_refused_before_the_method_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.rpc.handlers.LEAST_TIME_S", 1_000.0)
    echo = Echo()
    async with connected(echo) as client:
        refusal = await refusal_of(client.say("late", timeout=500.0))
        assert (refusal.code, refusal.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
        await client.say("in time", timeout=2_000.0)
    assert [call.value for call in echo.received] == ["in time"]


async def test_without_a_deadline_the_default_ends_the_call() -> None:
    async with connected(Held(), default_deadline_s=0.05) as client:
        refusal = await refusal_of(client.say())
    assert (refusal.code, refusal.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("end", ["DEADLINE_EXCEEDED", "CANCELLED"])
async def test_an_end_by_deadline_or_cancellation_reaches_method_and_metrics(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a slow machine the client's clock may be any time ahead.
    monkeypatch.setattr(deadlines, "CUT_OFF_SLACK_S", LONG_S)
    held = Held()
    other = {"DEADLINE_EXCEEDED": "CANCELLED", "CANCELLED": "DEADLINE_EXCEEDED"}[end]
    before = counted(end, other)
    with capture_logs() as logged:
        async with connected(held) as client:
            call = client.say(timeout=3 * LONG_S if end == "CANCELLED" else 2.0)
            waiting = asyncio.ensure_future(call)
            await held.begun.wait()
            if end == "CANCELLED":
                call.cancel()
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await waiting
            await held.ended.wait()
    assert counted(end, other) == [before[0] + 1, before[1]]
    assert not [line for line in logged if line["event"] == "unexpected error"]


# -- slots and streams -----------------------------------------------------------------------------


async def test_a_slot_is_free_again_after_every_kind_of_end() -> None:
    """Each call is counted by its code. How calls without a slot end: ``test_overload``."""
    before = counted("OK", "RESOURCE_EXHAUSTED", "INTERNAL")
    echo = Raising(SoldOut(), ValueError(), asyncio.CancelledError())
    with capture_logs():
        async with connected(echo, max_concurrent_calls=1) as client:
            for _ in range(3):
                assert (await refusal_of(client.say())).reason != "OVERLOADED"
                # The slot becomes free after the client has the status.
                await until_true(lambda: metrics.REGISTRY.get_sample_value(IN_FLIGHT) == 0)
            await client.say()
            await client.say()
    after = counted("OK", "RESOURCE_EXHAUSTED", "INTERNAL")
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1, 2]


async def test_a_streams_refusal_comes_after_the_messages_before_it() -> None:
    async def count(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield StringValue(value="1")
        yield StringValue(value="2")
        if request.value:
            raise SoldOut

    async with connected(Echo(count=count)) as client:
        assert [message.value async for message in client.count()] == ["1", "2"]
        call = client.count("refuse")
        assert [(await call.read()).value for _ in range(2)] == ["1", "2"]
        assert (await refusal_of(call.read())).reason == "SOLD_OUT"


async def test_a_stream_that_its_client_cancels_is_closed() -> None:
    held = Held()
    async with connected(held) as client:
        call = client.count()
        await call.read()
        call.cancel()
        await held.ended.wait()
