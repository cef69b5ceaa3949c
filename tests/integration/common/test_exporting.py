"""The way of spans to a collector: beside the calls, bounded at the end, quiet when it is gone."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from common import tracing
from tests.integration.common.echo import NAME, EchoStub, serving, settings
from tests.integration.start.process import Service, process
from tests.support.collector import ENDPOINT, Collector, collecting, tracing_to
from tests.support.patience import LONG_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SAY = f"{NAME}/Say"
URL = "postgresql://u:hunter2@127.0.0.1:1/tally"
LOST, AGAIN = "spans are not delivered", "spans are delivered again"
OURS = ("balance", "coupon", "order", "payment")


@contextmanager
def kept_port() -> Iterator[int]:
    """A port on which nobody listens in the block but who is told to: it is bound all the time."""
    with socket.socket() as kept:
        # So that a server, which sets this too, may listen on it.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield int(kept.getsockname()[1])


@asynccontextmanager
async def service(**environment: str) -> AsyncIterator[Service]:
    """The echo service as a process that is told no more about tracing than this."""
    given = {ENDPOINT: "", "TALLY_DATABASE_URL": URL, "TALLY_REPLICA": "echo-1", **environment}
    async with process("tests.integration.common.echo_process", **given) as started:
        yield started


async def say(running: Service, *words: str) -> list[str]:
    """What the service answers once it is ready."""
    port = (await running.line("listening"))["port"]
    await running.line("ready")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        return [(await EchoStub(channel).Say(StringValue(value=word))).value for word in words]


async def test_a_service_sends_its_spans_and_those_of_its_last_calls() -> None:
    """The exporter's turn comes in a minute; the end comes first."""
    with collecting() as collector:
        given = {ENDPOINT: collector.url, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        async with service(**given) as running:
            assert await say(running, "wait", "modules") == ["wait", "on"]
            assert collector.spans == []
            status, log = await running.stop()
    assert status == 0, log
    assert [span.name for span in collector.spans] == [SAY, SAY]
    [waited, _] = collector.spans
    assert waited.resource["service.name"] == "tally-echo"
    assert waited.resource["service.instance.id"] == "echo-1"
    assert f'"trace_id": "{waited.trace_id}"' in log
    assert LOST not in log


async def test_off_nothing_of_it_is_there() -> None:
    async with service() as running:
        assert await say(running, "modules") == ["off"]
        status, log = await running.stop()
    assert status == 0
    assert "trace_id" not in log


@pytest.mark.parametrize(
    "given",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
async def test_turned_off_it_is_off(given: dict[str, str]) -> None:
    async with service(**{ENDPOINT: "http://127.0.0.1:1", **given}) as running:
        assert await say(running, "modules") == ["off"]


def test_no_service_imports_opentelemetry_by_itself() -> None:
    imports = ", ".join(f"{name}_service.wiring" for name in OURS)
    program = f"import sys, {imports}; print([n for n in sys.modules if 'opentelem' in n])"
    told = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert told == "[]\n"


async def test_a_collector_that_is_away_costs_no_call_and_one_line() -> None:
    # Each attempt is given up soon, so that there are many within this test.
    given = {"OTEL_BSP_SCHEDULE_DELAY": "10", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.1"}
    with kept_port() as away:
        async with service(**{ENDPOINT: f"http://127.0.0.1:{away}"}, **given) as running:
            port = (await running.line("listening"))["port"]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                for _ in range(3):
                    await EchoStub(channel).Say(StringValue(value="wait"), wait_for_ready=True)
            status, log = await running.stop()
    assert status == 0
    assert log.count(LOST) == 1
    assert '"code": "UNAVAILABLE"' in log
    assert "Traceback" not in log
    assert "opentelemetry" not in log


async def test_that_it_is_away_is_told_once_and_that_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.2", "OTEL_BSP_MAX_QUEUE_SIZE": "2"}
    given["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = "1"
    with (
        kept_port() as port,
        caplog.at_level(logging.WARNING),
        capture_logs() as logged,
        tracing_to(f"http://127.0.0.1:{port}", settings(), **given),
    ):
        async with serving() as (address, _), grpc.aio.insecure_channel(address) as channel:

            async def until(event: str, arrived: Collector | None = None) -> None:
                while not any(line["event"] == event for line in logged):
                    await EchoStub(channel).Say(StringValue())

            await until(LOST)
            for _ in range(50):
                await EchoStub(channel).Say(StringValue())
            with collecting(port) as collector:
                await until(AGAIN)
                assert collector.spans
                tracing.end(LONG_S)
    assert [line["event"] for line in logged if "deliver" in line["event"]] == [LOST, AGAIN]
    assert [one for one in caplog.records if one.name.startswith("opentelemetry")] == []


async def test_a_collector_that_never_answers_holds_up_neither_calls_nor_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reached, released = threading.Event(), threading.Event()

    class Hanging(Collector):
        def take(self, request: Any, context: Any) -> None:
            reached.set()
            released.wait(90)

    with collecting(kept_by=Hanging()) as collector:
        # An attempt may take longer than this test may, and there is room for few spans meanwhile.
        given = {"OTEL_EXPORTER_OTLP_TIMEOUT": "600", "OTEL_BSP_MAX_QUEUE_SIZE": "2"}
        given["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = "1"
        with tracing_to(collector.url, settings(), **given):
            async with serving() as (address, _), grpc.aio.insecure_channel(address) as channel:
                await EchoStub(channel).Say(StringValue())
                assert reached.wait(60)
                for _ in range(20):
                    await EchoStub(channel).Say(StringValue())
            tracing.end()
        released.set()
    assert [one for one in caplog.records if one.name.startswith("opentelemetry")] == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({ENDPOINT: "collector:4317"}, f"{ENDPOINT}: must be http"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL: must be grpc"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "hunter2"}, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: "),
    ],
)
async def test_what_is_wrong_ends_the_replica_with_one_line_that_names_the_variable(
    given: dict[str, str], expected: str
) -> None:
    async with service(**{ENDPOINT: "http://127.0.0.1:1", **given}) as running:
        status, told = await running.end()
    assert status == 2
    assert told.startswith(expected)
    assert told.count("\n") == 1
    assert "hunter2" not in told


def test_an_unknown_sampler_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with tracing_to("http://127.0.0.1:1", settings(), OTEL_TRACES_SAMPLER="typo"):
        assert [one.getMessage() for one in caplog.records] == ["Couldn't recognize sampler typo."]


async def test_migrating_is_not_traced() -> None:
    module = "tests.integration.common.echo_process"
    given = {ENDPOINT: "malformed", "TALLY_OWNER_DATABASE_URL": URL}
    async with process(module, "migrate", **given) as running:
        status, _ = await running.end()
    assert status == 0
