"""Tracing of calls with OpenTelemetry: whether it is on, and where the services hook it in.

Off unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is set. Code
that builds handlers, stubs and tasks calls this module once, while building. Off, it gets back what
it passed, and no call runs through anything here. On, ``common.spans`` does the work.

The variables are OpenTelemetry's own, and its SDK reads them. Only the endpoint is checked here:
the SDK would take a malformed one, and every export would fail.
"""

from __future__ import annotations

import contextvars
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
from structlog.typing import EventDict

from common.environment import SettingsError

if TYPE_CHECKING:
    from common.spans import ReadRefusal, Spans

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Where spans are sent, over gRPC; the first that is set counts."""
FLUSH_S: Final = 2.0
"""How long the spans of the last calls may take to be sent when the service ends."""

_HOST: Final = r"(\[[\da-fA-F:]+\]|[^\[\]\s/?#@:]+)"
# gRPC would use port 443 for an http address without a port.
_ENDPOINT: Final = re.compile(rf"(https://{_HOST}(:\d{{1,5}})?|http://{_HOST}:\d{{1,5}})/?")
_VARIABLE: Final = re.compile(r"\bOTEL_[A-Z_]+\b")

Handle = TypeVar("Handle", bound=Callable[..., object])

_spans: Spans | None = None


def wanted() -> bool:
    """Whether the environment turns tracing on. Raises SettingsError for a malformed endpoint."""
    endpoint = next((name for name in ENDPOINTS if _given(name)), "")
    turned_off = (
        _given("OTEL_TRACES_EXPORTER").lower() == "none"
        or _given("OTEL_SDK_DISABLED").lower() == "true"
    )
    if not endpoint or turned_off:
        return False
    if not _ENDPOINT.fullmatch(_given(endpoint)):
        raise SettingsError(f"{endpoint}: must be http://host:port or https://host:port")
    return True


def start(*, service: str, replica: str, read_refusal: ReadRefusal) -> None:
    """Create spans from now on, if tracing is wanted. Call it before anything is built.

    ``read_refusal``: the refusal in a call's trailing metadata. Raises SettingsError for a variable
    that the SDK rejects.
    """
    global _spans  # noqa: PLW0603 - one for the process, as its log and its metrics are
    if not wanted():
        return
    try:
        # The SDK reads some variables when it is imported, and may raise then.
        from common.spans import Spans  # noqa: PLC0415

        _spans = Spans(service=service, replica=replica, read_refusal=read_refusal)
    except Exception as error:  # noqa: BLE001 - the SDK has no type of its own for this
        # The error's text may contain the value: only the variable's name is taken from it.
        found = _VARIABLE.search(str(error))
        name = found[0] if found else "OTEL_*"
        raise SettingsError(f"{name}: OpenTelemetry rejects it ({type(error).__name__})") from None


def stop(limit_s: float = FLUSH_S) -> None:
    """Send the remaining spans and create no more. Blocks for at most ``limit_s`` seconds."""
    global _spans
    spans, _spans = _spans, None
    if spans is not None:
        spans.close(limit_s)


def served(method: str, handle: Handle) -> Handle:
    """The method's handler, with a span around each call."""
    return handle if _spans is None else _spans.served(method, handle)


def calling(channel: grpc.aio.Channel) -> grpc.aio.Channel:
    """The channel, with a span around each unary call that is sent on to the other service."""
    return channel if _spans is None else _spans.calling(channel)


def own_context() -> Callable[[], contextvars.Context]:
    """A function that creates the context of work that outlives its call.

    The context has nothing of the call, such as its deadline, except its position in the trace.
    """
    return contextvars.Context if _spans is None else _spans.own_context


def root(name: str) -> AbstractContextManager[object]:
    """A span that begins a trace, for work that no call started."""
    return nullcontext() if _spans is None else _spans.root(name)


def log_ids(_logger: object, _method: str, event: EventDict) -> EventDict:
    """A structlog processor that adds ``trace_id`` and ``span_id``."""
    if _spans is not None:
        event.update(_spans.log_ids())
    return event


def _given(name: str) -> str:
    """The variable's value. OpenTelemetry takes an empty one as not set."""
    return os.environ.get(name, "").strip()
