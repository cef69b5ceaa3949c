"""The spans of calls, and their way to a collector. Imported only where ``common.tracing`` is on.

A span tells which method was called, by whom in the trace, when, and how it ended: the status code
and the refusal's reason. It never tells why in words: an exception's text, a stack and whatever a
request contains stay here.

Names and attributes are those of OpenTelemetry's semantic conventions for gRPC.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common import deadlines
from common.rpc.status import from_trailing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from opentelemetry.sdk.trace import ReadableSpan
    from structlog.typing import EventDict

_SYSTEM: Final = "rpc.system.name"
_METHOD: Final = "rpc.method"
_CODE: Final = "rpc.response.status_code"
_ERROR: Final = "error.type"
_REASON: Final = "tally.reason"
_ERROR_ID: Final = "tally.error_id"

_FAULTS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""What is the server's fault. For a caller every end but OK is an error."""

# Tells of each attempt to export; what a reader needs is told below.
_EXPORTER_LOG: Final = "opentelemetry.exporter.otlp.proto.grpc.exporter"
# Tell of each span that finds the queue full, of what clients write into `tracestate`, and of
# headers, which hold keys.
_TOO_LOUD: Final = (
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.util.re",
    "opentelemetry.trace.span",
    "opentelemetry.trace.propagation.tracecontext",
)

_log = structlog.get_logger(__name__)
_w3c = TraceContextTextMapPropagator()


class Spans:
    """The spans of one process."""

    def __init__(self, *, service: str, replica: str) -> None:
        """Begins to export, in a thread. Raises whatever the SDK has against its variables."""
        # What the operator says of the process comes last, and so counts.
        said = OTELResourceDetector().detect().attributes
        own = {"service.name": f"tally-{service}", "service.instance.id": replica}
        self._provider = TracerProvider(
            resource=Resource.create({**own, **said}), shutdown_on_exit=False
        )
        for name in _TOO_LOUD:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._exporter = _Telling(OTLPSpanExporter())
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("tally")

    def end(self, limit_s: float) -> None:
        """Exports what is left, for ``limit_s`` at most."""
        # In a thread that may be left behind: nothing of the SDK's takes a limit.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(0.9 * limit_s)
        if closing.is_alive():
            self._exporter.shutdown()
            closing.join(0.1 * limit_s)
        self._exporter.close()

    def served(self, method: str, handle: Any) -> Any:
        """See ``common.tracing.served``."""
        name = method.removeprefix("/")
        in_span = self._tracer.start_as_current_span

        async def traced(raw: bytes, context: Any) -> Any:
            with in_span(
                name,
                context=_w3c.extract(dict(context.invocation_metadata())),
                kind=SpanKind.SERVER,
                attributes={_SYSTEM: "grpc", _METHOD: name},
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    answer = await handle(raw, context)
                except BaseException as error:
                    code = context.code() or _code_without_status(error)
                    _tell(span, code, context.trailing_metadata(), fault=code.name in _FAULTS)
                    raise
                span.set_attribute(_CODE, "OK")
                return answer

        return traced

    def calling(self, channel: grpc.aio.Channel) -> Any:
        """See ``common.tracing.calling``."""
        return _TracedChannel(self._tracer, channel)

    def own_context(self) -> contextvars.Context:
        """See ``common.tracing.own_context``."""
        made = contextvars.Context()
        span = trace.get_current_span()
        if span.get_span_context().is_valid:
            made.run(attach, trace.set_span_in_context(span, Context()))
        return made

    def root(self, name: str) -> AbstractContextManager[object]:
        """See ``common.tracing.root``."""
        return self._tracer.start_as_current_span(
            name, context=Context(), record_exception=False, set_status_on_exception=False
        )


class _TracedChannel:
    """A channel as a generated stub uses it."""

    def __init__(self, tracer: trace.Tracer, channel: grpc.aio.Channel) -> None:
        self._tracer = tracer
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def unary_unary(self, method: str, *args: Any, **options: Any) -> Callable[..., Any]:
        """As the channel's, but for what it returns: to be awaited, and nothing else."""
        send = self._channel.unary_unary(method, *args, **options)
        name = method.removeprefix("/")
        in_span = self._tracer.start_as_current_span

        async def call(request: Any, *, timeout: float) -> Any:  # noqa: ASYNC109 - as gRPC's
            with in_span(
                name,
                kind=SpanKind.CLIENT,
                attributes={_SYSTEM: "grpc", _METHOD: name},
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                carried: dict[str, str] = {}
                _w3c.inject(carried)
                try:
                    answer = await send(request, timeout=timeout, metadata=tuple(carried.items()))
                except grpc.aio.AioRpcError as error:
                    _tell(span, error.code(), error.trailing_metadata(), fault=True)
                    raise
                except BaseException as error:
                    _tell(span, _code_without_status(error), (), fault=True)
                    raise
                span.set_attribute(_CODE, "OK")
                return answer

        return call


def log_ids(_: Any, __: str, event: EventDict) -> EventDict:
    """A structlog processor: in which trace a line was written."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _code_without_status(error: BaseException) -> grpc.StatusCode:
    if not isinstance(error, asyncio.CancelledError):
        return grpc.StatusCode.UNKNOWN
    cut_off = deadlines.cut_off()
    return grpc.StatusCode.DEADLINE_EXCEEDED if cut_off else grpc.StatusCode.CANCELLED


def _tell(span: trace.Span, code: grpc.StatusCode, trailing: Any, *, fault: bool) -> None:
    """How the call ended. No description: it would be the message."""
    if not span.is_recording():
        return
    span.set_attribute(_CODE, code.name)
    refusal = from_trailing(trailing or (), code)
    if refusal.reason:
        span.set_attribute(_REASON, refusal.reason)
    if "error_id" in refusal.metadata:
        span.set_attribute(_ERROR_ID, refusal.metadata["error_id"])
    if fault:
        span.set_attribute(_ERROR, code.name)
        span.set_status(StatusCode.ERROR)


class _Telling(SpanExporter):
    """Tells once that spans do not arrive, and once that they do again."""

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        self._exporter = exporter
        self._away = False
        self._why = ""
        # The first, for the library's own keeps from the rest what it has seen a moment ago.
        self._loud = logging.getLogger(_EXPORTER_LOG)
        self._loud.filters.insert(0, self._take_code)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Delivers the spans or drops them. Called in the exporting thread."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - one line, and the next batch is tried
            result, self._why = SpanExportResult.FAILURE, type(error).__name__
        away = result is not SpanExportResult.SUCCESS
        if away and not self._away:
            _log.warning("spans are not delivered", code=self._why)
        elif self._away and not away:
            _log.info("spans are delivered again")
        self._away = away
        return result

    def shutdown(self) -> None:
        """Ends what is under way."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return self._exporter.force_flush(timeout_millis)

    def close(self) -> None:
        """Leaves the library's log as it was."""
        self._loud.removeFilter(self._take_code)

    def _take_code(self, record: logging.LogRecord) -> bool:
        for value in record.args or ():
            if isinstance(value, grpc.StatusCode):
                self._why = value.name
        return False
