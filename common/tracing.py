"""Traces of calls with OpenTelemetry: whether they are made, and where the services ask for them.

Off unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is set. Those
who build handlers, stubs and tasks ask here once, when they build: off, each gets back what it came
with, OpenTelemetry is not imported, and a call passes through nothing of this. What is done when it
is on stands in ``common.spans``.

The variables are OpenTelemetry's own and its SDK obeys them. Here is checked what it would meet
with a traceback, or with a default that nobody asked for.
"""

from __future__ import annotations

import contextvars
import os
import re
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from common.environment import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import grpc
    from structlog.typing import Processor

    from common.settings import ServiceSettings
    from common.spans import Spans

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Where spans go, over gRPC; the first that is set counts."""
FLUSH_S: Final = 2.0
"""What the spans of the last calls get to be delivered when the service ends."""

_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_SECONDS: Final = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
_QUEUE, _BATCH = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_WHOLE: Final = (_QUEUE, _BATCH, "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT")
_QUEUE_DEFAULT, _BATCH_DEFAULT = 2048, 512
_SECONDS_MAX: Final = 86_400
_WHOLE_MAX: Final = 86_400_000
"""A day in milliseconds, and more spans than fit: a thread cannot wait for whatever is asked."""
_SAMPLER, _RATIO = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_BY_RATIO: Final = ("traceidratio", "parentbased_traceidratio")
_ATTRIBUTES: Final = "OTEL_RESOURCE_ATTRIBUTES"
_ATTRIBUTE: Final = re.compile(r"\s*[^\s=]+\s*=.*")
_FILES: Final = tuple(
    f"OTEL_EXPORTER_OTLP_{signal}{kind}"
    for signal in ("TRACES_", "")
    for kind in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
)
_HEADERS: Final = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_HEADER: Final = re.compile(r"\s*[A-Za-z0-9_.-]+\s*=[ -~]*")
_FORM: Final = "must be http://host:port or https://host:port"
_VARIABLE: Final = re.compile(r"\bOTEL_[A-Z_]+\b")

Handle = TypeVar("Handle", bound="Callable[[bytes, Any], Any]")

_spans: Spans | None = None


def wanted() -> bool:
    """Whether the environment asks for tracing. Raises SettingsError for what is wrong about it."""
    named = _first_set(ENDPOINTS)
    exporter = _given(_EXPORTER).lower() or "otlp"
    if not named or exporter == "none" or _given("OTEL_SDK_DISABLED").lower() == "true":
        return False
    if exporter != "otlp":
        raise SettingsError(f"{_EXPORTER}: must be otlp or none")
    protocol = _first_set(_PROTOCOLS)
    if protocol and _given(protocol) != "grpc":
        raise SettingsError(f"{protocol}: must be grpc; nothing else is built in")
    if told := _reason_against(_given(named)):
        raise SettingsError(f"{named}: {told}")
    _check_numbers()
    _check_ratio()
    _check_attributes()
    for name in _FILES:
        if _given(name) and not _can_be_read(Path(_given(name))):
            raise SettingsError(f"{name}: is not a file that can be read")
    for name in _HEADERS:
        if not all(_HEADER.fullmatch(one) for one in _given(name).split(",") if one):
            raise SettingsError(f"{name}: must be key=value, more of them after commas")
    with _refusing():
        # Some of the variables are read when it is imported.
        import common.spans  # noqa: F401, PLC0415
    return True


def begin(settings: ServiceSettings) -> None:
    """Make spans from now on, for ``wanted`` has said so. Before anything is built that asks.

    Raises SettingsError for a value that only the SDK knows to be wrong.
    """
    global _spans  # noqa: PLW0603 - one for the process, as its log and its metrics are
    from common.spans import Spans  # noqa: PLC0415 - not imported where tracing is off

    with _refusing():
        _spans = Spans(service=settings.service, replica=settings.replica)


def end(limit_s: float = FLUSH_S) -> None:
    """Deliver what is left and make no more spans. Blocks, for ``limit_s`` at most."""
    global _spans
    spans, _spans = _spans, None
    if spans is not None:
        spans.end(limit_s)


def served(method: str, handle: Handle) -> Handle:
    """The handler of a method, in a span of its own for each call."""
    return handle if _spans is None else _spans.served(method, handle)


def calling(channel: grpc.aio.Channel) -> grpc.aio.Channel:
    """The channel, whose unary calls are each in a span, and carry it to the other service."""
    return channel if _spans is None else _spans.calling(channel)


def own_context() -> Callable[[], contextvars.Context]:
    """How to make the context of work that does not end with its call.

    It has nothing of the call's, neither deadline nor anything else, but for its place in the
    trace.
    """
    return contextvars.Context if _spans is None else _spans.own_context


def root(name: str) -> AbstractContextManager[object]:
    """A span in which to begin what no call asked for: it would have as many traces as calls."""
    return nullcontext() if _spans is None else _spans.root(name)


def log_ids() -> Processor:
    """A structlog processor that adds ``trace_id`` and ``span_id``. Only where tracing is on."""
    from common.spans import log_ids as add  # noqa: PLC0415

    return add


@contextmanager
def _refusing() -> Iterator[None]:
    """What OpenTelemetry has against a variable, in one line."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - it has no type of its own for this
        # Its text may have the value in it: only the variable's name is taken from there.
        found = _VARIABLE.search(str(error))
        name = found[0] if found else _first_set(ENDPOINTS)
        raise SettingsError(f"{name}: OpenTelemetry refuses it ({type(error).__name__})") from None


def _given(name: str) -> str:
    """Empty counts as not set, as OpenTelemetry has it."""
    return os.environ.get(name, "").strip()


def _first_set(names: tuple[str, ...]) -> str:
    return next((name for name in names if _given(name)), "")


def _reason_against(endpoint: str) -> str:
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError:
        return _FORM
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or port == 0:
        return _FORM
    if url.path not in ("", "/") or url.query or url.fragment:
        return f"{_FORM}, with nothing behind it"
    if url.scheme == "http" and port is None:
        # gRPC would take 443.
        return f"{_FORM}; collectors listen on 4317"
    return ""


def _check_numbers() -> None:
    for name in _SECONDS:
        if name in os.environ and not _is_within(_given(name), float, _SECONDS_MAX):
            raise SettingsError(f"{name}: must be a number of seconds above 0, a day at most")
    for name in _WHOLE:
        if name in os.environ and not _is_within(_given(name), int, _WHOLE_MAX):
            told = f"must be a whole number above 0 and at most {_WHOLE_MAX}"
            raise SettingsError(f"{name}: {told}")
    batch = int(_given(_BATCH) or _BATCH_DEFAULT)
    queue = int(_given(_QUEUE) or _QUEUE_DEFAULT)
    if batch > queue:
        blamed = _BATCH if _given(_BATCH) else _QUEUE
        raise SettingsError(f"{blamed}: a batch must not be larger than the queue")


def _check_ratio() -> None:
    """The SDK would take all calls for one that it cannot read."""
    if _given(_SAMPLER).lower() not in _BY_RATIO or not _given(_RATIO):
        return
    try:
        fits = 0 <= float(_given(_RATIO)) <= 1
    except ValueError:
        fits = False
    if not fits:
        raise SettingsError(f"{_RATIO}: must be a part of all calls, from 0 to 1")


def _check_attributes() -> None:
    given = _given(_ATTRIBUTES)
    for one in given.split(",") if given else ():
        # What is not printable may be no text at all, and no span would go out with it.
        if not _ATTRIBUTE.fullmatch(one) or not one.isprintable():
            raise SettingsError(f"{_ATTRIBUTES}: must be key=value, more of them after commas")


def _is_within(text: str, kind: type[int | float], limit: int) -> bool:
    """Whether it is a number above 0 and no larger than the limit."""
    try:
        return 0 < kind(text) <= limit
    except ValueError:
        return False


def _can_be_read(file: Path) -> bool:
    return file.is_file() and os.access(file, os.R_OK)
