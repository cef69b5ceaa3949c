"""Spans of calls, and their export. Imported only where tracing is on (``common.tracing``).

A span has the method, its place in the trace, its times, and how it ended: the status code and the
refusal's reason. It has no text that could contain a secret: no exception, no stack, nothing of a
request.

Names and attributes are those of OpenTelemetry's semantic conventions for gRPC.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar, cast

import grpc
import structlog
from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common import deadlines
from common.errors import Refusal

Handle = TypeVar("Handle", bound=Callable[..., object])
Trailing = Iterable[tuple[str, str | bytes]]
ReadRefusal = Callable[[Trailing, grpc.StatusCode], Refusal]
"""The refusal in a call's trailing metadata."""

_SYSTEM: Final = "rpc.system.name"
_METHOD: Final = "rpc.method"
_CODE: Final = "rpc.response.status_code"
_ERROR: Final = "error.type"
_REASON: Final = "tally.reason"
_ERROR_ID: Final = "tally.error_id"

_SERVER_FAULTS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Codes that are errors of the server. For a caller every code but OK is an error."""

_EXPORTER_LOG: Final = "opentelemetry.exporter.otlp.proto.grpc.exporter"
"""Logs every failed export. ``_LoggedExporter`` logs the first one instead."""
_SILENCED_LOGS: Final = (
    "opentelemetry.sdk._shared_internal",  # every span that finds the queue full
    "opentelemetry.util.re",  # malformed headers, which contain keys
    "opentelemetry.trace.span",  # what clients send as `tracestate`
    "opentelemetry.trace.propagation.tracecontext",
)

_log = structlog.stdlib.get_logger()
_w3c = TraceContextTextMapPropagator()


class Spans:
    """The spans of one process."""

    def __init__(self, *, service: str, replica: str, read_refusal: ReadRefusal) -> None:
        """Start to export, in a thread. Raises what the SDK raises for its variables."""
        # The operator's attributes come last, so that they replace these.
        given = OTELResourceDetector().detect().attributes
        own = {"service.name": f"tally-{service}", "service.instance.id": replica}
        self._provider = TracerProvider(
            resource=Resource.create({**own, **given}), shutdown_on_exit=False
        )
        for name in _SILENCED_LOGS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._exporter = _LoggedExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("tally")
        self._read_refusal = read_refusal

    def close(self, limit_s: float) -> None:
        """Export what is left, for at most ``limit_s`` seconds."""
        # In a thread that can be left behind: the SDK's shutdown has no time limit.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(0.9 * limit_s)
        if closing.is_alive():
            self._exporter.shutdown()
            closing.join(0.1 * limit_s)
        self._exporter.close()

    def served(self, method: str, handle: Handle) -> Handle:
        """See ``common.tracing.served``."""
        name = method.removeprefix("/")

        async def traced(raw: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> object:
            parent = _w3c.extract(dict(context.invocation_metadata() or ()))
            with self.call(name, SpanKind.SERVER, parent) as span:
                try:
                    reply = await cast(Callable[..., Any], handle)(raw, context)
                except BaseException as error:
                    code = context.code() or _code_without_status(error)
                    is_error = code.name in _SERVER_FAULTS
                    self.set_end(span, code, context.trailing_metadata(), is_error=is_error)
                    raise
                span.set_attribute(_CODE, "OK")
                return reply

        return cast(Handle, traced)

    def calling(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        """See ``common.tracing.calling``."""
        return cast(grpc.aio.Channel, _TracedChannel(self, channel))

    def own_context(self) -> contextvars.Context:
        """See ``common.tracing.own_context``."""
        context = contextvars.Context()
        span = trace.get_current_span()
        if span.get_span_context().is_valid:
            context.run(attach, trace.set_span_in_context(span, Context()))
        return context

    def root(self, name: str) -> AbstractContextManager[object]:
        """See ``common.tracing.root``."""
        return self._tracer.start_as_current_span(
            name, context=Context(), record_exception=False, set_status_on_exception=False
        )

    def log_ids(self) -> dict[str, str]:
        """The ids of the current span, as log fields."""
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return {}
        return {
            "trace_id": trace.format_trace_id(context.trace_id),
            "span_id": trace.format_span_id(context.span_id),
        }

    def call(
        self, name: str, kind: SpanKind, parent: Context | None = None
    ) -> AbstractContextManager[trace.Span]:
        """A span around one call."""
        return self._tracer.start_as_current_span(
            name,
            context=parent,
            kind=kind,
            attributes={_SYSTEM: "grpc", _METHOD: name},
            record_exception=False,
            set_status_on_exception=False,
        )

    def set_end(
        self, span: trace.Span, code: grpc.StatusCode, trailing: Trailing | None, *, is_error: bool
    ) -> None:
        """Set how the call ended. There is no description: it would be the message."""
        if not span.is_recording():
            return
        span.set_attribute(_CODE, code.name)
        refusal = self._read_refusal(trailing or (), code)
        if refusal.reason:
            span.set_attribute(_REASON, refusal.reason)
        if "error_id" in refusal.metadata:
            span.set_attribute(_ERROR_ID, refusal.metadata["error_id"])
        if is_error:
            span.set_attribute(_ERROR, code.name)
            span.set_status(StatusCode.ERROR)


class _TracedChannel:
    """A channel as a generated stub uses it."""

    def __init__(self, spans: Spans, channel: grpc.aio.Channel) -> None:
        self._spans = spans
        self._channel = channel

    def __getattr__(self, name: str) -> object:
        return getattr(self._channel, name)

    def unary_unary(self, method: str, *args: Any, **options: Any) -> Callable[..., Any]:
        """The channel's, with a span for each call. The returned call can only be awaited."""
        send = self._channel.unary_unary(method, *args, **options)
        name = method.removeprefix("/")

        async def call(
            request: object,
            *,
            timeout: float,  # noqa: ASYNC109 - as gRPC's
            metadata: Iterable[tuple[str, str]] = (),
        ) -> object:
            with self._spans.call(name, SpanKind.CLIENT) as span:
                carried: dict[str, str] = {}
                _w3c.inject(carried)
                sent = grpc.aio.Metadata(*metadata, *carried.items())
                try:
                    response: object = await send(request, timeout=timeout, metadata=sent)
                except grpc.aio.AioRpcError as error:
                    trailing = error.trailing_metadata()
                    self._spans.set_end(span, error.code(), trailing, is_error=True)
                    raise
                except BaseException as error:
                    self._spans.set_end(span, _code_without_status(error), None, is_error=True)
                    raise
                span.set_attribute(_CODE, "OK")
                return response

        return call


def _code_without_status(error: BaseException) -> grpc.StatusCode:
    if not isinstance(error, asyncio.CancelledError):
        return grpc.StatusCode.UNKNOWN
    cut_off = deadlines.cut_off()
    return grpc.StatusCode.DEADLINE_EXCEEDED if cut_off else grpc.StatusCode.CANCELLED


class _LoggedExporter(OTLPSpanExporter):
    """Logs once that spans are not delivered, and once that they are again."""

    def __init__(self) -> None:
        super().__init__()
        self._failing = False
        self._code = ""
        self._library_log = logging.getLogger(_EXPORTER_LOG)
        # Before the library's own filter, which drops repeated lines.
        self._library_log.filters.insert(0, self._take_code)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans or drop them. Runs in the exporting thread."""
        try:
            result = super().export(spans)
        except Exception as error:  # noqa: BLE001 - one line, and the next batch is tried
            result, self._code = SpanExportResult.FAILURE, type(error).__name__
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._failing:
            _log.warning("spans are not delivered", code=self._code)
        elif self._failing and not failed:
            _log.info("spans are delivered again")
        self._failing = failed
        return result

    def close(self) -> None:
        """Restore the library's logger."""
        self._library_log.removeFilter(self._take_code)

    def _take_code(self, record: logging.LogRecord) -> bool:
        """A filter that drops every line of the library and keeps its status code."""
        for value in record.args or ():
            if isinstance(value, grpc.StatusCode):
                self._code = value.name
        return False
