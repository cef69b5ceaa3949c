"""What a client sees of a method's every possible end."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from common import deadlines, metrics
from common.errors import Code, FieldViolation, InvalidField, QuotaViolation, Refusal, RemoteRefusal
from common.rpc.handlers import MESSAGE_BYTES_MAX, Pipeline
from common.rpc.server import RECEIVE_BYTES_MAX
from common.rpc.status import from_rpc_error, is_retryable
from tests.integration.common.echo import SAY, Echo, EchoStub, add, serving
from tests.support.patience import LONG_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = "postgresql://u:hunter2@db/tally"


class SoldOut(Refusal):
    """Everything is gone."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "SOLD_OUT"

    quota = (QuotaViolation("campaign:7", "all 10 are issued"),)


@asynccontextmanager
async def stub(servicer: Echo, **given: Any) -> AsyncIterator[EchoStub]:
    async with (
        serving(servicer, **given) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield EchoStub(channel)


async def refused(call: Any) -> RemoteRefusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def raising(error: BaseException) -> Echo:
    async def say(request: StringValue, context: Any) -> StringValue:
        raise error

    return Echo(say)


async def test_an_answer_comes_with_the_replicas_name() -> None:
    async with stub(Echo(), replica="balance-3") as echo:
        call = echo.Say(StringValue(value="hello"))
        assert (await call).value == "hello"
        assert ("tally-replica", "balance-3") in tuple(await call.trailing_metadata())


async def test_a_refusal_arrives_whole_and_names_the_replica() -> None:
    async with stub(raising(SoldOut(campaign_id="7"))) as echo:
        call = echo.Say(StringValue())
        refusal = await refused(call)
        assert ("tally-replica", "one") in tuple(await call.trailing_metadata())
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "SOLD_OUT")
    assert refusal.metadata == {"campaign_id": "7"}
    assert refusal.message == "Everything is gone."
    assert refusal.quota == SoldOut.quota
    assert refusal.retry_after_s is None


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
async def test_grpcs_own_retries_are_told_what_retry_info_says(
    code: Code, retry_after_s: float | None, pushback: str | None
) -> None:
    refusal = RemoteRefusal(code, "REASON", "No.", {}, retry_after_s=retry_after_s)
    async with stub(raising(refusal)) as echo:
        call = echo.Say(StringValue())
        assert (await refused(call)).retry_after_s == retry_after_s
        told = dict(tuple(await call.trailing_metadata()))
    assert told.get("grpc-retry-pushback-ms") == pushback


async def test_a_silent_peer_is_pushed_back_as_its_retry_info_says() -> None:
    async with stub(raising(RemoteRefusal(Code.UNAVAILABLE, "", "", {}))) as echo:
        call = echo.Say(StringValue())
        retry_after_s = (await refused(call)).retry_after_s
        told = dict(tuple(await call.trailing_metadata()))
    assert retry_after_s
    assert told["grpc-retry-pushback-ms"] == str(round(retry_after_s * 1000))


async def test_an_unexpected_error_tells_only_an_id_that_the_log_has_too() -> None:
    before = metrics.UNEXPECTED.labels(SAY)._value.get()
    with capture_logs() as logged:
        async with stub(raising(ValueError(SECRET))) as echo:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await echo.Say(StringValue())
    error = caught.value
    refusal = from_rpc_error(error)
    assert (refusal.code, refusal.reason) == (Code.INTERNAL, "INTERNAL")
    assert set(refusal.metadata) == {"error_id"}
    told = f"{error.details()} {error.trailing_metadata()} {error.debug_error_string()}"
    assert "hunter2" not in told
    assert "ValueError" not in told
    [line] = [line for line in logged if line["event"] == "unexpected error"]
    assert line["error_id"] == refusal.metadata["error_id"]
    assert line["method"] == SAY
    assert SECRET in str(line["exc_info"])
    assert metrics.UNEXPECTED.labels(SAY)._value.get() == before + 1


async def test_an_answer_of_the_wrong_type_is_an_unexpected_error_too() -> None:
    async def say(request: StringValue, context: Any) -> Any:
        return "not a message"

    with capture_logs():
        async with stub(Echo(say)) as echo:
            assert (await refused(echo.Say(StringValue()))).reason == "INTERNAL"


async def test_a_peers_silence_is_not_told_in_the_transports_words() -> None:
    silent = RemoteRefusal(Code.UNAVAILABLE, "", "failed to connect to 10.0.0.7:50051", {})
    async with stub(raising(silent)) as echo:
        refusal = await refused(echo.Say(StringValue()))
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "PEER_UNAVAILABLE")
    assert "10.0.0.7" not in refusal.message
    assert refusal.retry_after_s is not None


@pytest.mark.parametrize("code", list(Code))
async def test_every_bare_code_of_a_peer_ends_in_a_status_with_a_reason(code: Code) -> None:
    silent = RemoteRefusal(code, "", "", {})
    async with stub(raising(silent)) as echo:
        refusal = await refused(echo.Say(StringValue()))
    assert refusal.reason == "PEER_UNAVAILABLE"
    assert (refusal.retry_after_s is not None) is is_retryable(silent)


async def test_bytes_that_are_no_message_are_an_invalid_field() -> None:
    async with serving(Echo()) as (address, _), grpc.aio.insecure_channel(address) as channel:
        send: Any = channel.unary_unary(SAY)
        refusal = await refused(send(b"\xff\xff\xff"))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in refusal.fields] == ["request"]


async def test_a_message_beyond_the_limit_is_refused_before_the_method_runs() -> None:
    async def say(request: StringValue, context: Any) -> StringValue:
        raise AssertionError("must not be reached")

    async with stub(Echo(say)) as echo:
        refusal = await refused(echo.Say(StringValue(value="x" * MESSAGE_BYTES_MAX)))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    [violation] = refusal.fields
    assert violation.field == "request"
    assert str(MESSAGE_BYTES_MAX) in violation.description


async def test_a_message_of_the_limit_is_taken() -> None:
    around = StringValue(value="x" * 60_000).ByteSize() - 60_000
    request = StringValue(value="x" * (MESSAGE_BYTES_MAX - around))
    assert request.ByteSize() == MESSAGE_BYTES_MAX
    async with stub(Echo()) as echo:
        assert await echo.Say(request) == request


async def test_a_message_that_the_transport_refuses_ends_the_call_and_not_the_connection() -> None:
    async with stub(Echo()) as echo:
        refusal = await refused(echo.Say(StringValue(value="x" * RECEIVE_BYTES_MAX)))
        assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "")
        assert (await echo.Say(StringValue(value="next"))).value == "next"


async def test_a_field_violation_raised_by_hand_arrives() -> None:
    async with stub(raising(InvalidField("amount.amount_minor", "must be positive"))) as echo:
        refusal = await refused(echo.Say(StringValue()))
    assert refusal.fields == (FieldViolation("amount.amount_minor", "must be positive"),)


async def test_a_cancelled_future_inside_a_method_still_gives_a_status() -> None:
    async def say(request: StringValue, context: Any) -> StringValue:
        future: asyncio.Future[StringValue] = asyncio.get_running_loop().create_future()
        future.cancel()
        return await future

    with capture_logs():
        async with stub(Echo(say)) as echo:
            # Without a status the client would wait for ever: it has no deadline here.
            refusal = await refused(echo.Say(StringValue()))
    assert refusal.reason == "INTERNAL"


async def test_a_clients_cancellation_reaches_the_method() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def say(request: StringValue, context: Any) -> StringValue:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    with capture_logs() as logged:
        async with stub(Echo(say)) as echo:
            call = echo.Say(StringValue())
            waiting = asyncio.ensure_future(call)
            await begun.wait()
            call.cancel()
            await cancelled.wait()
            with pytest.raises(asyncio.CancelledError):
                await waiting
    assert not [line for line in logged if line["event"] == "unexpected error"]


async def test_the_methods_deadline_is_the_callers() -> None:
    seen: list[float | None] = []

    async def say(request: StringValue, context: Any) -> StringValue:
        seen.append(deadlines.remaining())
        return request

    async with stub(Echo(say), default_deadline_s=7.0) as echo:
        await echo.Say(StringValue(), timeout=100.0)
        await echo.Say(StringValue())
    assert seen[0] is not None
    assert 7.0 < seen[0] <= 102.0  # gRPC rounds up what it sends
    assert seen[1] is not None
    assert 0 < seen[1] <= 7.0


async def test_calls_at_the_same_time_have_each_their_own_deadline() -> None:
    """It stands in the task's context: calls that take turns on one loop do not mix theirs up."""
    both = asyncio.Barrier(2)
    seen: dict[str, float] = {}

    async def say(request: StringValue, context: Any) -> StringValue:
        await both.wait()
        left_s = deadlines.remaining()
        assert left_s is not None
        seen[request.value] = left_s
        await both.wait()
        return request

    async with stub(Echo(say)) as echo:
        await asyncio.gather(
            echo.Say(StringValue(value="short"), timeout=60.0),
            echo.Say(StringValue(value="long"), timeout=600.0),
        )
    assert seen["short"] <= 62.0
    assert seen["long"] > 500.0


async def test_a_call_with_hardly_any_time_left_is_refused_before_the_method_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []

    async def say(request: StringValue, context: Any) -> StringValue:
        called.append(request.value)
        return request

    monkeypatch.setattr("common.rpc.handlers.LEAST_S", 1_000.0)
    async with stub(Echo(say)) as echo:
        refusal = await refused(echo.Say(StringValue(), timeout=500.0))
        assert (refusal.code, refusal.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
        await echo.Say(StringValue(value="in time"), timeout=2_000.0)
    assert called == ["in time"]


async def test_without_a_deadline_the_servers_own_ends_the_call() -> None:
    async def say(request: StringValue, context: Any) -> StringValue:
        await asyncio.Event().wait()
        raise AssertionError

    async with stub(Echo(say), default_deadline_s=0.05) as echo:
        refusal = await refused(echo.Say(StringValue()))
    assert (refusal.code, refusal.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


async def test_a_timeout_of_something_else_is_not_taken_for_the_deadline() -> None:
    with capture_logs():
        async with stub(raising(TimeoutError())) as echo:
            refusal = await refused(echo.Say(StringValue()))
    assert refusal.reason == "INTERNAL"


async def test_one_call_too_many_is_refused_and_the_place_is_free_again_afterwards() -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def say(request: StringValue, context: Any) -> StringValue:
        begun.set()
        await release.wait()
        return request

    async with stub(Echo(say), max_concurrent_calls=1) as echo:
        first = asyncio.ensure_future(echo.Say(StringValue(value="first")))
        await begun.wait()
        refusal = await refused(echo.Say(StringValue()))
        release.set()
        assert (await first).value == "first"
        assert (await echo.Say(StringValue(value="next"))).value == "next"
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert refusal.retry_after_s


async def test_a_place_is_free_again_after_every_kind_of_end() -> None:
    ends: list[BaseException] = [SoldOut(), ValueError(), asyncio.CancelledError()]

    async def say(request: StringValue, context: Any) -> StringValue:
        if ends:
            raise ends.pop()
        return request

    with capture_logs():
        async with stub(Echo(say), max_concurrent_calls=1) as echo:
            for _ in range(3):
                assert (await refused(echo.Say(StringValue()))).reason != "OVERLOADED"
            await echo.Say(StringValue())


async def test_a_stream_answers_and_its_refusal_comes_after_what_it_sent() -> None:
    async def count(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield StringValue(value="1")
        yield StringValue(value="2")
        if request.value:
            raise SoldOut

    async with stub(Echo(count=count)) as echo:
        assert [answer.value async for answer in echo.Count(StringValue())] == ["1", "2"]
        call = echo.Count(StringValue(value="refuse"))
        assert [(await call.read()).value for _ in range(2)] == ["1", "2"]
        refusal = await refused(call.read())
    assert refusal.reason == "SOLD_OUT"


async def test_a_stream_that_its_client_leaves_is_closed() -> None:
    closed = asyncio.Event()

    async def count(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        try:
            yield StringValue(value="1")
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with stub(Echo(count=count)) as echo:
        call = echo.Count(StringValue())
        await call.read()
        call.cancel()
        await closed.wait()


def counted(*codes: str) -> list[float]:
    return [float(metrics.CALLS.labels(SAY, code)._value.get()) for code in codes]


async def test_calls_are_counted_by_method_and_code() -> None:
    before = counted("OK", "RESOURCE_EXHAUSTED")
    answers: list[StringValue | Exception] = [SoldOut(), StringValue(), StringValue()]

    async def say(request: StringValue, context: Any) -> StringValue:
        answer = answers.pop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with stub(Echo(say)) as echo:
        await echo.Say(StringValue())
        await echo.Say(StringValue())
        await refused(echo.Say(StringValue()))
    assert counted("OK", "RESOURCE_EXHAUSTED") == [before[0] + 2, before[1] + 1]


@pytest.mark.parametrize("ends", ["DEADLINE_EXCEEDED", "CANCELLED"])
async def test_a_call_cut_off_by_its_deadline_is_not_counted_as_one_that_its_client_left(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of two clocks on a slow machine the client's may be any time ahead.
    monkeypatch.setattr(deadlines, "CUT_OFF_SLACK_S", LONG_S)
    begun = asyncio.Event()

    async def say(request: StringValue, context: Any) -> StringValue:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    other = {"DEADLINE_EXCEEDED": "CANCELLED", "CANCELLED": "DEADLINE_EXCEEDED"}[ends]
    before = counted(ends, other)
    async with stub(Echo(say)) as echo:
        call = echo.Say(StringValue(), timeout=3 * LONG_S if ends == "CANCELLED" else 3.0)
        waiting = asyncio.ensure_future(call)
        await begun.wait()
        if ends == "CANCELLED":
            call.cancel()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await waiting
    assert counted(ends, other) == [before[0] + 1, before[1]]


def test_a_method_that_is_not_written_is_noticed_when_mounting() -> None:
    class Unwritten(Echo):
        def Say(self, request: Any, context: Any) -> Any:  # noqa: N802
            raise NotImplementedError

    pipeline = Pipeline(replica="one", calls_max=1, default_deadline_s=1.0)
    with pytest.raises(TypeError, match="EchoService/Say"):
        add(Unwritten(), pipeline)
