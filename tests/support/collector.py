"""An OpenTelemetry collector that keeps what it receives over the wire."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc

from common import tracing
from common.rpc.status import from_trailing
from common.settings import ServiceSettings
from tests.support.time_limits import LONG_S

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@dataclass(frozen=True)
class Seen:
    """A received span."""

    name: str
    kind: str
    """``SERVER``, ``CLIENT`` or ``INTERNAL``."""
    trace_id: str
    span_id: str
    parent: str
    """The parent's span_id; '' for a root."""
    attributes: dict[str, str]
    error: bool
    resource: dict[str, str]


@dataclass
class Collector:
    """What was received so far. It has threads of its own: a test may block the loop meanwhile."""

    address: str = ""
    requests: list[pb.ExportTraceServiceRequest] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def take(self, request: pb.ExportTraceServiceRequest, context: Any) -> None:
        """Store an export. Called by the collector's threads."""
        with self._lock:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))

    @property
    def spans(self) -> list[Seen]:
        with self._lock:
            return [seen for request in self.requests for seen in _spans_of(request)]

    def named(self, name: str, kind: str = "SERVER") -> list[Seen]:
        return [span for span in self.spans if (span.name, span.kind) == (name, kind)]

    async def until(self, arrived: Callable[[Collector], Any]) -> None:
        """Wait until ``arrived`` is true."""
        async with asyncio.timeout(LONG_S):
            while not arrived(self):  # noqa: ASYNC110 - filled by other threads
                await asyncio.sleep(0.01)

    def everything(self) -> str:
        """Everything received, as bytes and as text."""
        with self._lock:
            sent = [f"{request} {request.SerializeToString()!r}" for request in self.requests]
            return " ".join([*sent, str(self.metadata)])


class _Servicer(pb_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(  # noqa: N802 - the method's name in the protocol
        self, request: pb.ExportTraceServiceRequest, context: Any
    ) -> pb.ExportTraceServiceResponse:
        self._collector.take(request, context)
        return pb.ExportTraceServiceResponse()


@contextmanager
def collecting(port: int = 0, collector: Collector | None = None) -> Iterator[Collector]:
    """A running collector."""
    collector = collector or Collector()
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    add: Any = pb_grpc.add_TraceServiceServicer_to_server
    add(_Servicer(collector), server)
    collector.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


@contextmanager
def tracing_to(endpoint: str, settings: ServiceSettings, **variables: str) -> Iterator[None]:
    """A block in which this process creates spans, for what is built in the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("OTEL_"):
                patch.delenv(name)
        given = {ENDPOINT: endpoint, "OTEL_BSP_SCHEDULE_DELAY": "20", **variables}
        for name, value in given.items():
            patch.setenv(name, value)
        tracing.start(
            service=settings.service, replica=settings.replica, read_refusal=from_trailing
        )
        try:
            yield
        finally:
            tracing.stop()


def _spans_of(request: pb.ExportTraceServiceRequest) -> Iterator[Seen]:
    for of_process in request.resource_spans:
        resource = _texts(of_process.resource.attributes)
        for scope in of_process.scope_spans:
            for span in scope.spans:
                kind = type(span).SpanKind.Name(span.kind).removeprefix("SPAN_KIND_")
                yield Seen(
                    span.name,
                    kind,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    _texts(span.attributes),
                    span.status.code == span.status.STATUS_CODE_ERROR,
                    resource,
                )


def _texts(attributes: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in attributes}
