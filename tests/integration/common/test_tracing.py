"""The spans that a collector receives: what a call did and how it ended, without any text."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from common import deadlines, logs, tracing
from common.errors import Code, DatabaseUnavailable, Refusal, RemoteRefusal
from common.rpc import reflection
from common.rpc.client import ServiceClient
from common.tasks import DetachedTasks, result_of
from tests.integration.common.echo import (
    NAME,
    NOT_SERVING,
    SERVING,
    Echo,
    EchoStub,
    Held,
    client_of,
    connected,
    raising,
    refusal_of,
    serving,
    settings,
)
from tests.integration.common.test_reflection import services_of
from tests.support.collector import Collector, Seen, collecting, tracing_to
from tests.support.time_limits import LONG_S

SAY, COUNT = f"{NAME}/Say", f"{NAME}/Count"
CANARY = "hunter2-canary"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01")


class SoldOut(Refusal):
    """Everything is gone."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "SOLD_OUT"


@contextmanager
def traced(**variables: str) -> Iterator[Collector]:
    with collecting() as collector, tracing_to(collector.url, settings(), **variables):
        yield collector


@asynccontextmanager
async def traced_client(
    servicer: Echo | None = None, /, **variables: str
) -> AsyncIterator[tuple[EchoStub, Collector]]:
    """A client of a traced server. At the end every span has been received."""
    with traced(**variables) as collector:
        async with connected(servicer) as client:
            yield client.echo, collector
        tracing.stop(LONG_S)


@asynccontextmanager
async def two_services(
    far: Echo | None = None,
) -> AsyncIterator[tuple[Collector, ServiceClient[EchoStub], Echo]]:
    """A traced service ``far``, a client of it, and a servicer that calls it by that client."""
    with traced() as collector:
        async with serving(far) as (address, _), client_of(address) as client:

            async def say(request: StringValue, context: Any) -> StringValue:
                response: StringValue = await client.call(client.stub.Say, request, limit_s=60.0)
                return response

            yield collector, client, Echo(say)
            await asyncio.to_thread(tracing.stop, LONG_S)


async def span_of_refused_call(servicer: Echo) -> Seen:
    async with traced_client(servicer) as (echo, collector):
        with pytest.raises(grpc.aio.AioRpcError):
            await echo.Say(StringValue())
    assert CANARY not in collector.everything()
    [span] = collector.spans
    return span


# -- one call --------------------------------------------------------------------------------------


async def test_a_call_is_a_span_in_the_callers_trace() -> None:
    async with traced_client() as (echo, collector):
        await echo.Say(StringValue(value=CANARY), metadata=(PARENT, ("tracestate", "x=1")))
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
async def test_a_call_with_a_malformed_parent_begins_a_trace(parent: str) -> None:
    async with traced_client() as (echo, collector):
        await echo.Say(StringValue(), metadata=(("traceparent", parent),))
    [span] = collector.spans
    assert span.parent == ""
    assert span.trace_id != TRACE


@pytest.mark.parametrize("state", [f"{CANARY};;;=,,", "x=" + "y" * 600, "x=1,x=2"])
async def test_malformed_trace_state_of_a_client_is_not_logged(
    state: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "opentelemetry"):
        async with traced_client() as (echo, collector):
            for parent in (PARENT, ("traceparent", "x" * 2_000)):
                await echo.Say(StringValue(), metadata=(parent, ("tracestate", state)))
    assert len(collector.spans) == 2
    assert [one.getMessage() for one in caplog.records if one.levelno > logging.DEBUG] == []


async def test_the_operators_attributes_replace_tallys_own() -> None:
    given = {
        "OTEL_SERVICE_NAME": "shop-echo",
        "OTEL_RESOURCE_ATTRIBUTES": "service.version=1.2,service.instance.id=theirs",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=open-sesame",
    }
    async with traced_client(**given) as (echo, collector):
        await echo.Say(StringValue())
    [span] = collector.spans
    assert span.resource["service.name"] == "shop-echo"
    assert span.resource["service.instance.id"] == "theirs"
    assert span.resource["service.version"] == "1.2"
    assert collector.metadata[0]["api-key"] == "open-sesame"


async def test_a_call_that_is_not_sampled_is_not_exported() -> None:
    async with traced_client(OTEL_TRACES_SAMPLER="parentbased_always_off") as (echo, collector):
        await echo.Say(StringValue())
        await echo.Say(StringValue(), metadata=(PARENT,))
    assert [span.trace_id for span in collector.spans] == [TRACE]


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.CANCELLED])
async def test_a_refusals_code_and_reason_are_attributes(code: Code) -> None:
    """Only a server's faults are errors."""
    refusal = RemoteRefusal(code, "NO_LUCK", CANARY, {"user_id": CANARY})
    span = await span_of_refused_call(raising(refusal))
    assert span.attributes["rpc.response.status_code"] == code.name
    assert span.attributes["tally.reason"] == "NO_LUCK"
    faults = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE"}
    assert span.error is (code.name in faults | {"DATA_LOSS"})
    assert ("error.type" in span.attributes) is span.error


async def test_an_unexpected_error_has_the_id_that_is_in_the_log() -> None:
    with capture_logs() as logged:
        span = await span_of_refused_call(raising(ValueError(CANARY)))
    assert (span.attributes["tally.reason"], span.error) == ("INTERNAL", True)
    [line] = [line for line in logged if line["event"] == "unexpected error"]
    assert span.attributes["tally.error_id"] == line["error_id"]


async def test_no_text_of_an_exception_a_request_or_a_setting_is_sent() -> None:
    inner = RuntimeError(f"postgresql://u:{CANARY}@db/tally")

    async def say(request: StringValue, context: Any) -> StringValue:
        try:
            raise inner
        except RuntimeError as error:
            raise ValueError(f"{request.value} {CANARY}") from error

    async def count(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield request
        raise KeyError(CANARY)

    request = StringValue(value=CANARY)
    with capture_logs() as logged:
        async with two_services(Echo(say)) as (collector, far, _):
            with pytest.raises(RemoteRefusal):
                await far.call(far.stub.Say, request, limit_s=60.0)
            async with connected(Echo(say, count)) as client:
                with pytest.raises(grpc.aio.AioRpcError):
                    await client.echo.Say(request, metadata=(("tally-test", CANARY),))
                with pytest.raises(grpc.aio.AioRpcError):
                    async for _ in client.echo.Count(request):
                        pass
    assert len(collector.spans) == 4
    sent = collector.everything()
    for text in (CANARY, "ValueError", "KeyError", "Traceback", "RuntimeError", __file__):
        assert text not in sent
    lines = [line for line in logged if line["event"] == "unexpected error"]
    assert CANARY in str(lines), "the canary must have been somewhere"
    for line in lines:
        assert line["error_id"] in sent


async def test_a_stream_is_one_span_and_a_drain_ends_it() -> None:
    with traced() as collector:
        async with connected(Held().echo, grace_s=300.0) as client:
            stream = client.echo.Count(StringValue(value=CANARY))
            await stream.read()
            assert collector.spans == []
            await client.server.drain()
            with pytest.raises(grpc.aio.AioRpcError):
                await stream.read()
        tracing.stop(LONG_S)
    [span] = collector.spans
    assert span.name == COUNT
    assert span.attributes["rpc.response.status_code"] == "UNAVAILABLE"
    assert span.attributes["tally.reason"] == "REPLICA_STOPPING"
    assert CANARY not in collector.everything()


async def test_a_client_that_cancels_ends_the_span_without_error() -> None:
    held = Held()
    async with traced_client(held.echo) as (echo, collector):
        call = echo.Say(StringValue())
        waiting = asyncio.ensure_future(call)
        await held.begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await collector.until(lambda seen: seen.spans)
    [span] = collector.spans
    assert span.attributes["rpc.response.status_code"] == "CANCELLED"
    assert not span.error


async def test_a_call_that_its_clients_deadline_ends_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So is the call to another service that ends with it."""
    # On a slow machine the client's clock may be any time ahead.
    monkeypatch.setattr(deadlines, "CUT_OFF_SLACK_S", LONG_S)
    async with two_services(Held().echo) as (collector, far, _):

        async def say(request: StringValue, context: Any) -> StringValue:
            response: StringValue = await far.stub.Say(request, timeout=3 * LONG_S)
            return response

        async with connected(Echo(say)) as client:
            refusal = await refusal_of(client.echo.Say(StringValue(), timeout=2.0))
            assert refusal.code is Code.DEADLINE_EXCEEDED
            await collector.until(lambda seen: len(seen.spans) == 3)
    [served] = [span for span in collector.named(SAY) if not span.parent]
    [sent] = collector.named(SAY, "CLIENT")
    for span in (served, sent):
        assert span.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
        assert span.error
    # The far service's own deadline is minutes away: its client has hung up.
    [left] = [span for span in collector.named(SAY) if span.parent]
    assert left.attributes["rpc.response.status_code"] == "CANCELLED"
    assert not left.error


# -- calls to another service ----------------------------------------------------------------------


async def test_a_call_to_another_service_is_in_the_same_trace() -> None:
    """Also from work that is detached from its call, as payments are."""
    async with two_services() as (collector, _, near):
        work = DetachedTasks("work")

        async def say(request: StringValue, context: Any) -> StringValue:
            return await result_of(work.start(near.Say(request, context)))

        async with connected(Echo(say)) as client:
            assert (await client.echo.Say(StringValue(value="through"))).value == "through"
            await collector.until(lambda seen: len(seen.spans) == 3)
    [sent] = collector.named(SAY, "CLIENT")
    [parent] = [span for span in collector.named(SAY) if not span.parent]
    [child] = [span for span in collector.named(SAY) if span.parent]
    assert (sent.parent, child.parent) == (parent.span_id, sent.span_id)
    assert {span.trace_id for span in collector.spans} == {parent.trace_id}
    assert sent.attributes["rpc.response.status_code"] == "OK"


async def test_each_attempt_at_a_call_is_a_span_of_its_own() -> None:
    refusals: list[Refusal] = [DatabaseUnavailable(), SoldOut()]
    refusals[0].retry_after_s = 0.01  # type: ignore[misc]

    async def say(request: StringValue, context: Any) -> StringValue:
        raise refusals.pop(0)

    async with two_services(Echo(say)) as (collector, far, _):
        with pytest.raises(RemoteRefusal, match="Everything is gone"):
            await far.call(far.stub.Say, StringValue(), limit_s=60.0)
    reasons = [span.attributes["tally.reason"] for span in collector.named(SAY, "CLIENT")]
    assert reasons == ["DATABASE_UNAVAILABLE", "SOLD_OUT"]
    # For a caller every refusal is an error, for a server only its own faults.
    assert [span.error for span in collector.named(SAY, "CLIENT")] == [True, True]
    assert [span.error for span in collector.named(SAY)] == [True, False]


async def test_an_attempt_without_a_reply_has_a_code_and_no_address() -> None:
    async with serving() as (address, _):
        pass
    with traced() as collector:
        async with client_of(address) as far:
            with pytest.raises(RemoteRefusal):
                await far.call(far.stub.Say, StringValue(), limit_s=60.0, attempts_max=1)
        tracing.stop(LONG_S)
    [span] = collector.spans
    assert (span.kind, span.error) == ("CLIENT", True)
    assert span.attributes["rpc.response.status_code"] == "UNAVAILABLE"
    assert "tally.reason" not in span.attributes
    assert address not in collector.everything()


async def test_calls_at_the_same_time_each_have_their_own_trace() -> None:
    both = asyncio.Barrier(2)
    traces = ["1" * 32, "2" * 32]
    async with two_services() as (collector, _, near):

        async def say(request: StringValue, context: Any) -> StringValue:
            await both.wait()
            response = await near.Say(request, context)
            await both.wait()
            return response

        async with connected(Echo(say)) as client:
            parents = [("traceparent", f"00-{each}-{SPAN}-01") for each in traces]
            calls = (client.echo.Say(StringValue(), metadata=(parent,)) for parent in parents)
            await asyncio.gather(*calls)
            await collector.until(lambda seen: len(seen.spans) == 6)
    assert sorted(span.trace_id for span in collector.spans) == sorted(3 * traces)


# -- beside the calls ------------------------------------------------------------------------------


async def test_health_and_reflection_have_no_spans_and_watch_works() -> None:
    with traced() as collector:
        async with connected(reflection=True) as client:
            watch = client.watch()
            await watch.until(SERVING)
            assert await client.check() == SERVING
            assert NAME in await services_of(client.channel, reflection.V1)
            await client.echo.Say(StringValue())
            draining = asyncio.create_task(client.server.drain())
            assert await watch.next() == NOT_SERVING
            assert (await refusal_of(watch.next())).code is Code.UNAVAILABLE
            await draining
        tracing.stop(LONG_S)
    assert [span.name for span in collector.spans] == [SAY]


async def test_log_lines_of_a_traced_call_have_its_ids(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    log = structlog.stdlib.get_logger()

    async def say(request: StringValue, context: Any) -> StringValue:
        log.info("inside")
        logging.getLogger("library").warning("inside too")
        return request

    logs.configure(
        service="echo", replica="one", level="info", output="json", also=[tracing.log_ids]
    )
    try:
        async with traced_client(Echo(say)) as (echo, collector):
            await echo.Say(StringValue())
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        structlog.reset_defaults()
    [span] = collector.spans
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    inside = [line for line in lines if line["event"].startswith("inside")]
    assert len(inside) == 2
    ids = {(line["trace_id"], line["span_id"]) for line in inside}
    assert ids == {(span.trace_id, span.span_id)}
    [outside] = [line for line in lines if line["event"] == "listening"]
    assert "trace_id" not in outside
