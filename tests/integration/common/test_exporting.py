"""The export of spans: it delays no call, ends in time, and logs a lost collector once."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from common import tracing
from tests.integration.common.echo import NAME, EchoStub, connected, settings
from tests.integration.start.process import Service, process
from tests.support.collector import ENDPOINT, Collector, collecting, tracing_to
from tests.support.time_limits import LONG_S

SAY = f"{NAME}/Say"
URL = "postgresql://u:hunter2@127.0.0.1:1/tally"
LOST, AGAIN = "spans are not delivered", "spans are delivered again"
SMALL_QUEUE = {"OTEL_BSP_MAX_QUEUE_SIZE": "2", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1"}


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port on which nobody listens, and which nobody else gets: it is bound."""
    with socket.socket() as reserved:
        # A server, which sets this option too, may listen on it.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield int(reserved.getsockname()[1])


@asynccontextmanager
async def service(**environment: str) -> AsyncIterator[Service]:
    given = {ENDPOINT: "", "TALLY_DATABASE_URL": URL, "TALLY_REPLICA": "echo-1", **environment}
    async with process("tests.integration.common.echo_process", **given) as started:
        yield started


async def replies(running: Service, *words: str) -> list[str]:
    """The service's replies, once it is ready."""
    port = (await running.line("listening"))["port"]
    await running.line("ready")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        return [(await EchoStub(channel).Say(StringValue(value=word))).value for word in words]


def library_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name.startswith("opentelemetry")]


async def test_a_service_exports_its_last_spans_when_it_ends() -> None:
    """The exporter's next turn is in a minute."""
    with collecting() as collector:
        given = {ENDPOINT: collector.url, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        async with service(**given) as running:
            assert await replies(running, "wait", "tracing") == ["wait", "on"]
            assert collector.spans == []
            status, log = await running.stop()
    assert status == 0, log
    [waited, other] = collector.spans
    assert (waited.name, other.name) == (SAY, SAY)
    assert waited.resource["service.name"] == "tally-echo"
    assert waited.resource["service.instance.id"] == "echo-1"
    assert f'"trace_id": "{waited.trace_id}"' in log
    assert LOST not in log


async def test_without_an_endpoint_the_exporter_is_not_imported() -> None:
    async with service() as running:
        assert await replies(running, "tracing") == ["off"]
        status, log = await running.stop()
    assert status == 0
    assert "trace_id" not in log


async def test_a_lost_collector_costs_no_call_and_one_line() -> None:
    # Each attempt is short, so that there are many within this test.
    given = {"OTEL_BSP_SCHEDULE_DELAY": "10", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.1"}
    with reserved_port() as port:
        async with service(**{ENDPOINT: f"http://127.0.0.1:{port}"}, **given) as running:
            assert await replies(running, *3 * ["wait"]) == 3 * ["wait"]
            status, log = await running.stop()
    assert status == 0
    assert log.count(LOST) == 1
    assert '"code": "UNAVAILABLE"' in log
    assert "Traceback" not in log
    assert "opentelemetry" not in log


async def test_a_collector_that_comes_back_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.2", **SMALL_QUEUE}
    with (
        reserved_port() as port,
        caplog.at_level(logging.WARNING),
        capture_logs() as logged,
        tracing_to(f"http://127.0.0.1:{port}", settings(), **given),
    ):
        async with connected() as client:

            async def until(event: str) -> None:
                while not any(line["event"] == event for line in logged):
                    await client.echo.Say(StringValue())

            await until(LOST)
            for _ in range(50):
                await client.echo.Say(StringValue())
            with collecting(port) as collector:
                await until(AGAIN)
                assert collector.spans
                tracing.stop(LONG_S)
    assert [line["event"] for line in logged if "deliver" in line["event"]] == [LOST, AGAIN]
    assert library_lines(caplog) == []


async def test_a_collector_that_hangs_delays_neither_calls_nor_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reached, released = threading.Event(), threading.Event()

    class Hanging(Collector):
        def take(self, request: Any, context: Any) -> None:
            reached.set()
            released.wait(90)

    with collecting(collector=Hanging()) as collector:
        # An attempt may take longer than this test, and the queue has room for few spans.
        given = {"OTEL_EXPORTER_OTLP_TIMEOUT": "600", **SMALL_QUEUE}
        with tracing_to(collector.url, settings(), **given):
            async with connected() as client:
                await client.echo.Say(StringValue())
                assert reached.wait(60)
                for _ in range(20):
                    await client.echo.Say(StringValue())
            tracing.stop()
        released.set()
    assert library_lines(caplog) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({ENDPOINT: "collector:4317"}, f"{ENDPOINT}: must be http"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "hunter2"}, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: "),
    ],
)
async def test_a_rejected_variable_ends_the_replica_with_one_line(
    given: dict[str, str], expected: str
) -> None:
    async with service(**{ENDPOINT: "http://127.0.0.1:1", **given}) as running:
        status, log = await running.end()
    assert status == 2
    assert log.startswith(expected)
    assert log.count("\n") == 1
    assert "hunter2" not in log


async def test_migrate_is_not_traced() -> None:
    module = "tests.integration.common.echo_process"
    given = {ENDPOINT: "malformed", "TALLY_OWNER_DATABASE_URL": URL}
    async with process(module, "migrate", **given) as running:
        status, _ = await running.end()
    assert status == 0
