"""What a client gets for every way in which a method can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from common import deadlines, metrics
from common.errors import Code, QuotaViolation, Refusal, RemoteRefusal
from common.rpc.handlers import HandlerRegistry
from common.rpc.server import RECEIVE_BYTES_MAX
from common.rpc.status import from_rpc_error, is_retryable
from common.rpc.validation import MESSAGE_BYTES_MAX
from tests.integration.common.echo import (
    SAY,
    Echo,
    EchoStub,
    Held,
    add,
    connected,
    raising,
    refusal_of,
)
from tests.support.time_limits import LONG_S

SECRET = "postgresql://u:hunter2@db/tally"


class SoldOut(Refusal):
    """Everything is gone."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "SOLD_OUT"

    quota = (QuotaViolation("campaign:7", "all 10 are issued"),)


@asynccontextmanager
async def stub(servicer: Echo, **given: Any) -> AsyncIterator[EchoStub]:
    async with connected(servicer, **given) as client:
        yield client.echo


async def ending(error: BaseException) -> tuple[RemoteRefusal, dict[str, str | bytes]]:
    """The refusal and the trailing metadata of a call whose method raises."""
    async with stub(raising(error)) as echo:
        call = echo.Say(StringValue())
        return await refusal_of(call), dict(tuple(await call.trailing_metadata()))


# -- replies and refusals --------------------------------------------------------------------------


async def test_a_reply_has_the_replicas_name() -> None:
    async with stub(Echo(), replica="balance-3") as echo:
        call = echo.Say(StringValue(value="hello"))
        assert (await call).value == "hello"
        assert ("tally-replica", "balance-3") in tuple(await call.trailing_metadata())


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
        async with stub(raising(ValueError(SECRET))) as echo:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await echo.Say(StringValue())
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
        async with stub(Echo(say)) as echo:
            assert (await refusal_of(echo.Say(StringValue()))).reason == "INTERNAL"


def test_a_method_that_is_not_implemented_is_an_error_at_registration() -> None:
    class Unimplemented(Echo):
        def Say(self, request: Any, context: Any) -> Any:  # noqa: N802
            raise NotImplementedError

    with pytest.raises(TypeError, match="EchoService/Say"):
        add(Unimplemented(), HandlerRegistry(replica="one", calls_max=1, default_deadline_s=1.0))


# -- messages --------------------------------------------------------------------------------------


async def test_bytes_that_are_no_message_are_an_invalid_field() -> None:
    async with connected() as client:
        send: Any = client.channel.unary_unary(SAY)
        refusal = await refusal_of(send(b"\xff\xff\xff"))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in refusal.fields] == ["request"]


async def test_a_message_above_the_limit_is_refused_before_the_method_runs() -> None:
    async with stub(raising(AssertionError("must not run"))) as echo:
        refusal = await refusal_of(echo.Say(StringValue(value="x" * MESSAGE_BYTES_MAX)))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    [violation] = refusal.fields
    assert violation.field == "request"
    assert str(MESSAGE_BYTES_MAX) in violation.description


async def test_a_message_of_exactly_the_limit_is_accepted() -> None:
    overhead = StringValue(value="x" * 60_000).ByteSize() - 60_000
    request = StringValue(value="x" * (MESSAGE_BYTES_MAX - overhead))
    assert request.ByteSize() == MESSAGE_BYTES_MAX
    async with stub(Echo()) as echo:
        assert await echo.Say(request) == request


async def test_a_message_above_the_transports_limit_ends_only_the_call() -> None:
    async with stub(Echo()) as echo:
        refusal = await refusal_of(echo.Say(StringValue(value="x" * RECEIVE_BYTES_MAX)))
        assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "")
        assert (await echo.Say(StringValue(value="next"))).value == "next"


# -- deadlines and cancellation --------------------------------------------------------------------


async def test_a_clients_cancellation_reaches_the_method() -> None:
    held = Held()
    with capture_logs() as logged:
        async with stub(held.echo) as echo:
            call = echo.Say(StringValue())
            waiting = asyncio.ensure_future(call)
            await held.begun.wait()
            call.cancel()
            await held.ended.wait()
            with pytest.raises(asyncio.CancelledError):
                await waiting
    assert not [line for line in logged if line["event"] == "unexpected error"]


async def test_a_method_has_the_callers_deadline_or_the_default() -> None:
    left: list[float] = []

    async def say(request: StringValue, context: Any) -> StringValue:
        left.append(deadlines.remaining() or 0.0)
        return request

    async with stub(Echo(say), default_deadline_s=7.0) as echo:
        await echo.Say(StringValue(), timeout=100.0)
        await echo.Say(StringValue())
    assert 7.0 < left[0] <= 102.0  # gRPC rounds up what it sends
    assert 0 < left[1] <= 7.0


async def test_calls_at_the_same_time_each_have_their_own_deadline() -> None:
    both = asyncio.Barrier(2)
    left: dict[str, float] = {}

    async def say(request: StringValue, context: Any) -> StringValue:
        await both.wait()
        left[request.value] = deadlines.remaining() or 0.0
        await both.wait()
        return request

    async with stub(Echo(say)) as echo:
        await asyncio.gather(
            echo.Say(StringValue(value="short"), timeout=60.0),
            echo.Say(StringValue(value="long"), timeout=600.0),
        )
    assert 0.0 < left["short"] <= 62.0
    assert left["long"] > 500.0


async def test_a_call_with_too_little_time_is_refused_before_the_method_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []

    async def say(request: StringValue, context: Any) -> StringValue:
        called.append(request.value)
        return request

    monkeypatch.setattr("common.rpc.handlers.LEAST_TIME_S", 1_000.0)
    async with stub(Echo(say)) as echo:
        refusal = await refusal_of(echo.Say(StringValue(), timeout=500.0))
        assert (refusal.code, refusal.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
        await echo.Say(StringValue(value="in time"), timeout=2_000.0)
    assert called == ["in time"]


async def test_without_a_deadline_the_default_ends_the_call() -> None:
    async with stub(Held().echo, default_deadline_s=0.05) as echo:
        refusal = await refusal_of(echo.Say(StringValue()))
    assert (refusal.code, refusal.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


# -- the concurrency limit -------------------------------------------------------------------------


async def test_a_call_above_the_limit_is_refused_until_a_slot_is_free() -> None:
    held = Held()
    async with stub(held.echo, max_concurrent_calls=1) as echo:
        first = asyncio.ensure_future(echo.Say(StringValue(value="first")))
        await held.begun.wait()
        refusal = await refusal_of(echo.Say(StringValue()))
        held.release.set()
        assert (await first).value == "first"
        assert (await echo.Say(StringValue(value="next"))).value == "next"
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert refusal.retry_after_s


async def test_a_slot_is_free_again_after_every_kind_of_end() -> None:
    ends: list[BaseException] = [SoldOut(), ValueError(), asyncio.CancelledError()]

    async def say(request: StringValue, context: Any) -> StringValue:
        if ends:
            raise ends.pop()
        return request

    with capture_logs():
        async with stub(Echo(say), max_concurrent_calls=1) as echo:
            for _ in range(3):
                assert (await refusal_of(echo.Say(StringValue()))).reason != "OVERLOADED"
            await echo.Say(StringValue())


# -- streams ---------------------------------------------------------------------------------------


async def test_a_streams_refusal_comes_after_the_messages_before_it() -> None:
    async def count(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield StringValue(value="1")
        yield StringValue(value="2")
        if request.value:
            raise SoldOut

    async with stub(Echo(count=count)) as echo:
        assert [message.value async for message in echo.Count(StringValue())] == ["1", "2"]
        call = echo.Count(StringValue(value="refuse"))
        assert [(await call.read()).value for _ in range(2)] == ["1", "2"]
        assert (await refusal_of(call.read())).reason == "SOLD_OUT"


async def test_a_stream_that_its_client_cancels_is_closed() -> None:
    held = Held()
    async with stub(held.echo) as echo:
        call = echo.Count(StringValue())
        await call.read()
        call.cancel()
        await held.ended.wait()


# -- metrics ---------------------------------------------------------------------------------------


def counted(*codes: str) -> list[float]:
    return [float(metrics.CALLS.labels(SAY, code)._value.get()) for code in codes]


async def test_calls_are_counted_by_method_and_code() -> None:
    before = counted("OK", "RESOURCE_EXHAUSTED")
    ends: list[Refusal] = [SoldOut()]

    async def say(request: StringValue, context: Any) -> StringValue:
        if request.value:
            raise ends.pop()
        return request

    async with stub(Echo(say)) as echo:
        await echo.Say(StringValue())
        await echo.Say(StringValue())
        await refusal_of(echo.Say(StringValue(value="refuse")))
    assert counted("OK", "RESOURCE_EXHAUSTED") == [before[0] + 2, before[1] + 1]


@pytest.mark.parametrize("end", ["DEADLINE_EXCEEDED", "CANCELLED"])
async def test_a_deadline_is_counted_apart_from_a_cancellation(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a slow machine the client's clock may be any time ahead.
    monkeypatch.setattr(deadlines, "CUT_OFF_SLACK_S", LONG_S)
    held = Held()
    other = {"DEADLINE_EXCEEDED": "CANCELLED", "CANCELLED": "DEADLINE_EXCEEDED"}[end]
    before = counted(end, other)
    async with stub(held.echo) as echo:
        call = echo.Say(StringValue(), timeout=3 * LONG_S if end == "CANCELLED" else 2.0)
        waiting = asyncio.ensure_future(call)
        await held.begun.wait()
        if end == "CANCELLED":
            call.cancel()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await waiting
        await held.ended.wait()
    assert counted(end, other) == [before[0] + 1, before[1]]
