"""What a collector gets to see of calls: their course and their end, and none of their words."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from common import deadlines, logs, tracing
from common.errors import Code, DatabaseUnavailable, Refusal, RemoteRefusal
from common.rpc.channels import open_channel
from common.rpc.client import ServiceClient
from common.tasks import DetachedTasks, result_of
from tests.integration.common.echo import NAME, Echo, EchoStub, serving, settings
from tests.integration.common.test_server import SERVING, services_told
from tests.support.collector import Collector, Seen, collecting, tracing_to
from tests.support.patience import LONG_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SAY, COUNT = f"{NAME}/Say", f"{NAME}/Count"
CANARY = "hunter2-canary"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class SoldOut(Refusal):
    """Everything is gone."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "SOLD_OUT"


@contextmanager
def traced(**variables: str) -> Iterator[Collector]:
    with collecting() as collector, tracing_to(collector.url, settings(), **variables):
        yield collector


@asynccontextmanager
async def echoing(servicer: Echo | None = None, **given: Any) -> AsyncIterator[EchoStub]:
    """A client of a server, which traces if it is asked for within ``traced``."""
    async with (
        serving(servicer, **given) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield EchoStub(channel)


def raising(error: BaseException) -> Echo:
    async def say(request: StringValue, context: Any) -> StringValue:
        raise error

    return Echo(say)


async def refused_call(servicer: Echo) -> Seen:
    """The span of a call that is refused as the servicer has it, and in no words."""
    with traced() as collector:
        async with echoing(servicer) as echo:
            with pytest.raises(grpc.aio.AioRpcError):
                await echo.Say(StringValue())
        tracing.end(LONG_S)
    assert CANARY not in collector.everything()
    [span] = collector.spans
    return span


async def test_a_call_is_a_span_of_the_callers_trace() -> None:
    with traced() as collector:
        async with echoing() as echo:
            parent = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "x=1"))
            await echo.Say(StringValue(value=CANARY), metadata=parent)
        tracing.end(LONG_S)
    [span] = collector.spans
    assert (span.name, span.kind, span.error) == (SAY, "SERVER", False)
    assert (span.trace_id, span.parent) == (TRACE, SPAN)
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": SAY,
        "rpc.response.status_code": "OK",
    }
    assert span.resource["service.name"] == "tally-echo"
    assert span.resource["service.instance.id"] == "one"
    assert CANARY not in collector.everything()


@pytest.mark.parametrize("parent", ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01", "x" * 2_000])
async def test_without_a_parent_that_can_be_read_a_call_begins_a_trace(parent: str) -> None:
    with traced() as collector:
        async with echoing() as echo:
            await echo.Say(StringValue(), metadata=(("traceparent", parent),))
        tracing.end(LONG_S)
    [span] = collector.spans
    assert span.parent == ""
    assert span.trace_id != TRACE


@pytest.mark.parametrize("state", [f"{CANARY};;;=,,", "x=" + "y" * 600, "x=1,x=2"])
async def test_what_a_client_writes_about_its_trace_is_not_logged(
    state: str, caplog: pytest.LogCaptureFixture
) -> None:
    parents = [f"00-{TRACE}-{SPAN}-01", "x" * 2_000]
    with caplog.at_level(logging.DEBUG, "opentelemetry"), traced() as collector:
        async with echoing() as echo:
            for parent in parents:
                told = (("traceparent", parent), ("tracestate", state))
                await echo.Say(StringValue(), metadata=told)
        tracing.end(LONG_S)
    assert len(collector.spans) == len(parents)
    assert [one.getMessage() for one in caplog.records if one.levelno > logging.DEBUG] == []


async def test_what_the_operator_says_of_the_process_counts_more_than_what_we_do() -> None:
    said = {
        "OTEL_SERVICE_NAME": "shop-echo",
        "OTEL_RESOURCE_ATTRIBUTES": "service.version=1.2,service.instance.id=theirs",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=open-sesame",
    }
    with traced(**said) as collector:
        async with echoing() as echo:
            await echo.Say(StringValue())
        tracing.end(LONG_S)
    [span] = collector.spans
    assert span.resource["service.name"] == "shop-echo"
    assert span.resource["service.instance.id"] == "theirs"
    assert span.resource["service.version"] == "1.2"
    assert collector.metadata[0]["api-key"] == "open-sesame"


async def test_what_is_not_sampled_is_not_sent() -> None:
    with traced(OTEL_TRACES_SAMPLER="parentbased_always_off") as collector:
        async with echoing() as echo:
            await echo.Say(StringValue())
            sampled = (("traceparent", f"00-{TRACE}-{SPAN}-01"),)
            await echo.Say(StringValue(), metadata=sampled)
        tracing.end(LONG_S)
    assert [span.trace_id for span in collector.spans] == [TRACE]


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.CANCELLED])
async def test_a_refusal_is_told_by_code_and_reason_and_only_faults_are_errors(code: Code) -> None:
    refusal = RemoteRefusal(code, "NO_LUCK", CANARY, {"user_id": CANARY})
    span = await refused_call(raising(refusal))
    assert span.attributes["rpc.response.status_code"] == code.name
    assert span.attributes["tally.reason"] == "NO_LUCK"
    faults = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE"}
    assert span.error is (code.name in faults | {"DATA_LOSS"})
    assert ("error.type" in span.attributes) is span.error


async def test_what_no_code_expected_is_told_by_the_id_that_the_log_has_too() -> None:
    with capture_logs() as logged:
        span = await refused_call(raising(ValueError(CANARY)))
    assert (span.attributes["tally.reason"], span.error) == ("INTERNAL", True)
    [line] = [line for line in logged if line["event"] == "unexpected error"]
    assert span.attributes["tally.error_id"] == line["error_id"]


async def test_no_words_of_an_exception_of_a_request_or_of_a_setting_are_sent() -> None:
    inner = RuntimeError(f"postgresql://u:{CANARY}@db/tally")

    async def say(request: StringValue, context: Any) -> StringValue:
        try:
            raise inner
        except RuntimeError as error:
            raise ValueError(f"{request.value} {CANARY}") from error

    async def count(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield request
        raise KeyError(CANARY)

    with traced() as collector, capture_logs() as logged:
        async with echoing(Echo(say, count)) as echo:
            with pytest.raises(grpc.aio.AioRpcError):
                await echo.Say(StringValue(value=CANARY), metadata=(("tally-test", CANARY),))
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in echo.Count(StringValue(value=CANARY)):
                    pass
        async with serving(Echo(say)) as (address, _), peer_of(address) as peer:
            with pytest.raises(RemoteRefusal):
                await peer.call(peer.stub.Say, StringValue(value=CANARY), limit_s=60.0)
        tracing.end(LONG_S)
    assert len(collector.spans) == 4
    sent = collector.everything()
    for word in (CANARY, "ValueError", "KeyError", "Traceback", "RuntimeError", __file__):
        assert word not in sent
    told = [line for line in logged if line["event"] == "unexpected error"]
    assert CANARY in str(told), "the canary was nowhere to be found in the first place"
    for line in told:
        assert line["error_id"] in sent


@asynccontextmanager
async def peer_of(*addresses: str) -> AsyncIterator[ServiceClient[EchoStub]]:
    async with ServiceClient(open_channel(",".join(addresses)), EchoStub) as peer:
        yield peer


async def test_a_call_to_another_service_is_a_child_and_the_parent_of_what_it_causes() -> None:
    """Through work that is detached from its call, as payments are."""
    async with AsyncExitStack() as stack:
        collector = stack.enter_context(traced())
        second, _ = await stack.enter_async_context(serving(replica="second"))
        peer = await stack.enter_async_context(peer_of(second))
        work = DetachedTasks("work")

        async def ask(request: StringValue) -> StringValue:
            answer: StringValue = await peer.call(peer.stub.Say, request, limit_s=60.0)
            return answer

        async def say(request: StringValue, context: Any) -> StringValue:
            return await result_of(work.begin(ask(request)))

        first = await stack.enter_async_context(echoing(Echo(say), replica="first"))
        assert (await first.Say(StringValue(value="through"))).value == "through"
        await collector.until(lambda seen: len(seen.spans) == 3)
        await asyncio.to_thread(tracing.end, LONG_S)
    [client] = collector.named(SAY, "CLIENT")
    [parent] = [span for span in collector.named(SAY) if not span.parent]
    [child] = [span for span in collector.named(SAY) if span.parent]
    assert client.parent == parent.span_id
    assert child.parent == client.span_id
    assert {span.trace_id for span in collector.spans} == {parent.trace_id}
    assert client.attributes["rpc.response.status_code"] == "OK"


async def test_each_attempt_at_a_call_is_a_span_of_its_own() -> None:
    refusals: list[Refusal] = [DatabaseUnavailable(), SoldOut()]
    refusals[0].retry_after_s = 0.01  # type: ignore[misc]

    async def say(request: StringValue, context: Any) -> StringValue:
        raise refusals.pop(0)

    with traced() as collector:
        async with serving(Echo(say)) as (address, _), peer_of(address) as peer:
            with pytest.raises(RemoteRefusal) as caught:
                await peer.call(peer.stub.Say, StringValue(), limit_s=60.0)
        tracing.end(LONG_S)
    assert caught.value.reason == "SOLD_OUT"
    told = [span.attributes["tally.reason"] for span in collector.named(SAY, "CLIENT")]
    assert told == ["DATABASE_UNAVAILABLE", "SOLD_OUT"]
    # To a caller every refusal is an error, to a server only its own faults.
    assert [span.error for span in collector.named(SAY, "CLIENT")] == [True, True]
    assert [span.error for span in collector.named(SAY)] == [True, False]


async def test_an_attempt_that_nobody_answers_is_told_by_its_code_and_not_by_addresses() -> None:
    async with serving() as (address, _):
        pass
    with traced() as collector:
        async with peer_of(address) as peer:
            with pytest.raises(RemoteRefusal):
                await peer.call(peer.stub.Say, StringValue(), limit_s=60.0, repeat=False)
        tracing.end(LONG_S)
    [span] = collector.spans
    assert (span.kind, span.error) == ("CLIENT", True)
    assert span.attributes["rpc.response.status_code"] == "UNAVAILABLE"
    assert "tally.reason" not in span.attributes
    assert address not in collector.everything()


async def test_calls_at_the_same_time_do_not_mix_up_their_traces() -> None:
    both = asyncio.Barrier(2)

    async with AsyncExitStack() as stack:
        collector = stack.enter_context(traced())
        second, _ = await stack.enter_async_context(serving())
        peer = await stack.enter_async_context(peer_of(second))

        async def say(request: StringValue, context: Any) -> StringValue:
            await both.wait()
            answer: StringValue = await peer.call(peer.stub.Say, request, limit_s=60.0)
            await both.wait()
            return answer

        first = await stack.enter_async_context(echoing(Echo(say)))
        traces = ["1" * 32, "2" * 32]
        await asyncio.gather(
            *(
                first.Say(StringValue(), metadata=(("traceparent", f"00-{each}-{SPAN}-01"),))
                for each in traces
            )
        )
        await collector.until(lambda seen: len(seen.spans) == 6)
        await asyncio.to_thread(tracing.end, LONG_S)
    found = sorted(span.trace_id for span in collector.spans)
    assert found == ["1" * 32] * 3 + ["2" * 32] * 3


async def test_a_stream_is_one_span_which_a_drain_ends() -> None:
    async def count(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield request
        yield request
        await asyncio.Event().wait()

    with traced() as collector:
        async with (
            serving(Echo(count=count), grace_s=300.0) as (address, server),
            grpc.aio.insecure_channel(address) as channel,
        ):
            stream = EchoStub(channel).Count(StringValue(value=CANARY))
            await stream.read()
            await stream.read()
            assert collector.spans == []
            await server.drain()
            with pytest.raises(grpc.aio.AioRpcError):
                await stream.read()
        tracing.end(LONG_S)
    [span] = collector.spans
    assert span.name == COUNT
    assert span.attributes["rpc.response.status_code"] == "UNAVAILABLE"
    assert span.attributes["tally.reason"] == "REPLICA_STOPPING"
    assert CANARY not in collector.everything()


async def test_a_caller_that_leaves_ends_the_span() -> None:
    begun = asyncio.Event()

    async def say(request: StringValue, context: Any) -> StringValue:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    with traced() as collector:
        async with echoing(Echo(say)) as echo:
            call = echo.Say(StringValue())
            waiting = asyncio.ensure_future(call)
            await begun.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await collector.until(lambda seen: seen.spans)
        tracing.end(LONG_S)
    [span] = collector.spans
    assert span.attributes["rpc.response.status_code"] == "CANCELLED"
    assert not span.error


async def test_a_call_that_its_clients_deadline_ends_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And so is the call to another service that ends with it."""
    # Of two clocks on a slow machine the client's may be any time ahead.
    monkeypatch.setattr(deadlines, "CUT_OFF_SLACK_S", LONG_S)

    async def hang(request: StringValue, context: Any) -> StringValue:
        await asyncio.Event().wait()
        raise AssertionError

    async with AsyncExitStack() as stack:
        collector = stack.enter_context(traced())
        second, _ = await stack.enter_async_context(serving(Echo(hang)))
        peer = await stack.enter_async_context(peer_of(second))

        async def say(request: StringValue, context: Any) -> StringValue:
            answer: StringValue = await peer.stub.Say(request, timeout=3 * LONG_S)
            return answer

        first = await stack.enter_async_context(echoing(Echo(say)))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await first.Say(StringValue(), timeout=3.0)
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await collector.until(lambda seen: len(seen.spans) == 3)
        await asyncio.to_thread(tracing.end, LONG_S)
    [served] = [span for span in collector.named(SAY) if not span.parent]
    [client] = collector.named(SAY, "CLIENT")
    for span in (served, client):
        assert span.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
        assert span.error
    # With minutes left: to this one its client has hung up.
    [left] = [span for span in collector.named(SAY) if span.parent]
    assert left.attributes["rpc.response.status_code"] == "CANCELLED"
    assert not left.error


async def test_health_and_reflection_make_no_spans_and_a_watch_works() -> None:
    with traced() as collector:
        async with (
            serving(reflection=True) as (address, server),
            grpc.aio.insecure_channel(address) as channel,
        ):
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            while (await watch.read()).status != SERVING:
                pass
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
            method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            assert NAME in await services_told(channel, method)
            await EchoStub(channel).Say(StringValue())
            draining = asyncio.create_task(server.drain())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await watch.read()
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            await draining
        tracing.end(LONG_S)
    assert [span.name for span in collector.spans] == [SAY]


async def test_lines_that_a_traced_call_writes_tell_its_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    work = structlog.get_logger("ours")

    async def say(request: StringValue, context: Any) -> StringValue:
        work.info("inside")
        logging.getLogger("theirs").warning("inside too")
        return request

    try:
        with traced() as collector:
            logs.configure(
                service="echo",
                replica="one",
                level="info",
                output="json",
                also=[tracing.log_ids()],
            )
            async with echoing(Echo(say)) as echo:
                await echo.Say(StringValue())
            tracing.end(LONG_S)
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        structlog.reset_defaults()
    [span] = collector.spans
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    inside = [line for line in lines if line["event"].startswith("inside")]
    assert len(inside) == 2
    assert {(line["trace_id"], line["span_id"]) for line in inside} == {
        (span.trace_id, span.span_id)
    }
    [outside] = [line for line in lines if line["event"] == "listening"]
    assert "trace_id" not in outside
