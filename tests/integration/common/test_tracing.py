"""The spans that a collector receives: what a call did and how it ended, without any text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from common import deadlines, tracing
from common.errors import Code, DatabaseUnavailable, RemoteRefusal
from common.rpc import reflection
from common.rpc.client import ServiceClient
from tests.integration.common.echo import (
    NAME,
    NOT_SERVING,
    SERVING,
    Connection,
    Echo,
    EchoStub,
    Held,
    Raising,
    SoldOut,
    client_of,
    connected,
    refusal_of,
    serving,
    settings,
)
from tests.integration.common.test_reflection import services_of
from tests.support.collector import Collector, collecting, tracing_to
from tests.support.time_limits import LONG_S

SAY, COUNT = f"{NAME}/Say", f"{NAME}/Count"
CANARY = "hunter2-canary"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01")


@contextmanager
def traced(**variables: str) -> Iterator[Collector]:
    with collecting() as collector, tracing_to(collector.url, settings(), **variables):
        yield collector


@asynccontextmanager
async def traced_client(
    servicer: Echo | None = None, /, **variables: str
) -> AsyncIterator[tuple[Connection, Collector]]:
    """A client of a traced server. At the end every span has been received."""
    with traced(**variables) as collector:
        async with connected(servicer, reflection=True) as client:
            yield client, collector
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


# -- one call --------------------------------------------------------------------------------------


async def test_a_call_is_a_span_in_the_callers_trace() -> None:
    async with traced_client() as (client, collector):
        await client.say(CANARY, metadata=(PARENT, ("tracestate", "x=1")))
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


@pytest.mark.parametrize(
    ("key", "value", "parent"),
    [
        *(("traceparent", text, "") for text in ("", "nonsense", f"00-{'0' * 32}-{SPAN}-01")),
        ("traceparent", "x" * 2_000, ""),
        *(("tracestate", text, SPAN) for text in (f"{CANARY};;;=,,", "x=" + "y" * 600, "x=1,x=2")),
    ],
)
async def test_malformed_trace_metadata_of_a_client_is_ignored_and_not_logged(
    key: str, value: str, parent: str, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = dict([PARENT]) | {key: value}
    with caplog.at_level(logging.DEBUG, "opentelemetry"):
        async with traced_client() as (client, collector):
            await client.say(metadata=tuple(metadata.items()))
    [span] = collector.spans
    assert span.parent == parent
    assert (span.trace_id == TRACE) is bool(parent)
    assert [one.getMessage() for one in caplog.records if one.levelno > logging.DEBUG] == []


async def test_the_operators_attributes_replace_tallys_own() -> None:
    given = {
        "OTEL_SERVICE_NAME": "shop-echo",
        "OTEL_RESOURCE_ATTRIBUTES": "service.version=1.2,service.instance.id=theirs",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=open-sesame",
    }
    async with traced_client(**given) as (client, collector):
        await client.say()
    [span] = collector.spans
    assert span.resource["service.name"] == "shop-echo"
    assert span.resource["service.instance.id"] == "theirs"
    assert span.resource["service.version"] == "1.2"
    assert collector.metadata[0]["api-key"] == "open-sesame"


async def test_a_call_that_is_not_sampled_is_not_exported() -> None:
    async with traced_client(OTEL_TRACES_SAMPLER="parentbased_always_off") as (client, collector):
        await client.say()
        await client.say(metadata=(PARENT,))
    assert [span.trace_id for span in collector.spans] == [TRACE]


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.CANCELLED])
async def test_a_refusals_code_and_reason_are_attributes(code: Code) -> None:
    """Only a server's faults are errors."""
    refusal = RemoteRefusal(code, "NO_LUCK", CANARY, {"user_id": CANARY})
    async with traced_client(Raising(refusal)) as (client, collector):
        with pytest.raises(grpc.aio.AioRpcError):
            await client.say()
    [span] = collector.spans
    assert span.attributes["rpc.response.status_code"] == code.name
    assert span.attributes["tally.reason"] == "NO_LUCK"
    faults = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE"}
    assert span.error is (code.name in faults | {"DATA_LOSS"})
    assert ("error.type" in span.attributes) is span.error
    assert CANARY not in collector.everything()


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

    with capture_logs() as logged:
        async with two_services(Echo(say)) as (collector, far, _):
            with pytest.raises(RemoteRefusal):
                await far.call(far.stub.Say, StringValue(value=CANARY), limit_s=60.0)
            async with connected(Echo(say, count)) as client:
                with pytest.raises(grpc.aio.AioRpcError):
                    await client.say(CANARY, metadata=(("tally-test", CANARY),))
                with pytest.raises(grpc.aio.AioRpcError):
                    async for _ in client.count(CANARY):
                        pass
    assert len(collector.spans) == 4
    assert {(s.attributes["tally.reason"], s.error) for s in collector.spans} == {
        ("INTERNAL", True)
    }
    sent = collector.everything()
    for text in (CANARY, "ValueError", "KeyError", "Traceback", "RuntimeError", __file__):
        assert text not in sent
    lines = [line for line in logged if line["event"] == "unexpected error"]
    assert CANARY in str(lines), "the canary must have been somewhere"
    assert {line["error_id"] for line in lines} == {
        span.attributes["tally.error_id"] for span in collector.spans
    }


async def test_a_call_that_its_clients_deadline_ends_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So is its call to another service. There the client has hung up, which is no error."""
    # On a slow machine the client's clock may be any time ahead.
    monkeypatch.setattr(deadlines, "CUT_OFF_SLACK_S", LONG_S)
    async with two_services(Held()) as (collector, far, _):

        async def say(request: StringValue, context: Any) -> StringValue:
            response: StringValue = await far.stub.Say(request, timeout=3 * LONG_S)
            return response

        async with connected(Echo(say)) as client:
            refusal = await refusal_of(client.say(timeout=2.0))
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


async def test_calls_at_the_same_time_each_have_their_own_trace() -> None:
    """It goes on in their calls to another service: ``tests/integration/order/test_traces.py``."""
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
            await asyncio.gather(*(client.say(metadata=(parent,)) for parent in parents))
            await collector.until(lambda seen: len(seen.spans) == 6)
    assert sorted(span.trace_id for span in collector.spans) == sorted(3 * traces)


async def test_each_attempt_at_a_call_is_a_span_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DatabaseUnavailable, "retry_after_s", 0.01)
    echo = Raising(DatabaseUnavailable(), SoldOut())
    async with two_services(echo) as (collector, far, _):
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


# -- beside the calls ------------------------------------------------------------------------------


async def test_health_and_reflection_have_no_spans_and_watch_works() -> None:
    """A stream of another service has one, which ends with it: here by the drain."""
    async with traced_client(Held()) as (client, collector):
        watch = client.watch()
        await watch.until(SERVING)
        assert await client.check() == SERVING
        assert NAME in await services_of(client.channel, reflection.V1)
        stream = client.count(CANARY)
        await stream.read()
        assert collector.spans == []
        draining = asyncio.create_task(client.server.drain())
        assert await watch.next() == NOT_SERVING
        for ended in (watch.next(), stream.read()):
            assert (await refusal_of(ended)).code is Code.UNAVAILABLE
        await draining
    [span] = collector.spans
    assert span.name == COUNT
    assert span.attributes["rpc.response.status_code"] == "UNAVAILABLE"
    assert span.attributes["tally.reason"] == "REPLICA_STOPPING"
    assert CANARY not in collector.everything()
