"""The export of spans: it delays no call, ends in time, and logs a lost collector once."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from common import tracing
from tests.integration.common.echo import NAME, connected, settings
from tests.integration.common.echo_process import echo_service, replies
from tests.support.collector import ENDPOINT, Collector, collecting, tracing_to
from tests.support.time_limits import LONG_S

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


def library_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name.startswith("opentelemetry")]


async def test_a_service_exports_its_last_spans_when_it_ends() -> None:
    """The exporter's next turn is in a minute. Log lines of a call have its span's ids."""
    with collecting() as collector:
        given = {ENDPOINT: collector.url, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        async with echo_service(**given) as running:
            assert await replies(running, "wait", "tracing") == ["wait", "on"]
            assert collector.spans == []
            status, log = await running.stop()
    assert status == 0, log
    [waited, other] = collector.spans
    assert waited.name == other.name == f"{NAME}/Say"
    assert waited.resource["service.name"] == "tally-echo"
    assert waited.resource["service.instance.id"] == "echo-1"
    lines = [json.loads(line) for line in log.splitlines()]
    inside = [line for line in lines if line["event"].startswith("waiting")]
    ids = [(line["trace_id"], line["span_id"]) for line in inside]
    assert ids == 2 * [(waited.trace_id, waited.span_id)]
    assert log.count("trace_id") == 2
    assert LOST not in log


async def test_without_an_endpoint_the_exporter_is_not_imported() -> None:
    async with echo_service() as running:
        assert await replies(running, "tracing") == ["off"]
        status, log = await running.stop()
    assert status == 0
    assert "trace_id" not in log


async def test_a_collector_that_comes_back_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And its loss, which fails no call."""
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
                    await client.say()

            await until(LOST)
            for _ in range(50):
                await client.say()
            with collecting(port) as collector:
                await until(AGAIN)
                assert collector.spans
                tracing.stop(LONG_S)
    [lost, again] = [line for line in logged if "deliver" in line["event"]]
    assert (lost["event"], lost["code"], again["event"]) == (LOST, "UNAVAILABLE", AGAIN)
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
                await client.say()
                assert reached.wait(60)
                for _ in range(20):
                    await client.say()
            tracing.stop()
        released.set()
    assert library_lines(caplog) == []
