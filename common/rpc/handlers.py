"""What happens around every gRPC method, built once per method when it is mounted.

    overload limit → parse → deadline → validation → the method → render → status → metrics

and around all of it a span where calls are traced (``common.tracing``).

Not a chain of interceptors: grpc.aio resolves those anew for each call and gives them no sight of
an exception's own status. One function per method costs a call a few microseconds.

Requests are parsed and responses rendered here and not by gRPC, which would tell a client the text
of whatever exception a malformed message causes.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from common import deadlines, metrics, tracing
from common.errors import Code, DeadlineTooShort, Internal, InvalidField, Overloaded, Refusal
from common.rpc.default_deadline import DefaultDeadline
from common.rpc.status import DETAILS_KEY, GRPC_CODES, to_status
from common.rpc.validation import check

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Callable,
        Coroutine,
        Iterable,
        Mapping,
    )

    Handle = Callable[[Any, Any], Coroutine[Any, Any, Any]]
    Responses = Callable[[Any, Any], AsyncGenerator[Any, None]]

REPLICA_KEY: Final = "tally-replica"
# What gRPC's own retries read; they know nothing of RetryInfo (gRFC A6).
PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
_NEVER: Final = ((PUSHBACK_KEY, "-1"),)

# A call with less time than this left cannot be answered in time: refuse it before it costs a
# database round trip.
LEAST_S: Final = 0.002
# The event loop's clock has a resolution of a millisecond.
CLOCK_SLACK_S: Final = 0.005
# Checked here, where a refusal can say so; beyond the transport's own limit (common.rpc.server), a few
# times larger, gRPC ends a call with a status that has no reason.
MESSAGE_BYTES_MAX: Final = 64 * 1024

_log = structlog.get_logger(__name__)


class Stopping(Refusal):
    """This replica is stopping; call again, another one answers."""

    code = Code.UNAVAILABLE
    reason = "REPLICA_STOPPING"
    retry_after_s = 0.1


class NotYetReady(Refusal):
    """This replica has just been started and cannot serve yet; call again, another one may."""

    code = Code.UNAVAILABLE
    reason = "REPLICA_NOT_READY"
    retry_after_s = 1.0


class ConcurrencyLimit:
    """Counts the calls being served and knows how many there may be."""

    __slots__ = ("active", "calls_max")

    def __init__(self, calls_max: int) -> None:
        self.active = 0
        self.calls_max = calls_max


class Pipeline:
    """Wraps the handlers of a server's services.

    Looks like a server to the generated ``add_…_to_server`` functions: it takes what they register
    and keeps the wrapped handlers in ``handlers``, by full method name.
    """

    def __init__(self, *, replica: str, calls_max: int, default_deadline_s: float) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._calls_max = calls_max
        # No places before the replica was ready for the first time: see open().
        self._calls = ConcurrencyLimit(0)
        # Streams wait more than they work: they must not use up the places of unary calls.
        self._streams = ConcurrencyLimit(0)
        self._default_deadline_s = default_deadline_s
        self._watch = DefaultDeadline(default_deadline_s)
        self._trailing = ((REPLICA_KEY, replica),)
        self._stream_tasks: set[asyncio.Task[Any]] = set()
        self._opened = False
        self._stopping = False
        metrics.IN_FLIGHT.set_function(lambda: self._calls.active + self._streams.active)

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """Ignored: generated code registers the same handlers by name as well."""

    def add_registered_method_handlers(
        self, service_name: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Wraps and keeps each handler of a service."""
        self.wrap(service_name, handlers, limited=True)

    def wrap(
        self,
        service_name: str,
        handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]],
        *,
        limited: bool,
    ) -> None:
        """As ``add_registered_method_handlers``; without ``limited``, no overload limit applies.

        Such calls are not traced either.
        """
        for name, handler in handlers.items():
            method = f"/{service_name}/{name}"
            handle: Handle
            made: Callable[[Any], grpc.RpcMethodHandler[Any, Any]]
            if handler.response_streaming:
                gate = self._streams if limited else ConcurrencyLimit(2**31)
                handle = self._stream(method, handler, gate)
                made = grpc.unary_stream_rpc_method_handler
                if handler.request_streaming:
                    made = grpc.stream_stream_rpc_method_handler
            else:
                if handler.request_streaming:
                    raise TypeError(f"{method}: a stream with one answer is not supported")
                gate = self._calls if limited else ConcurrencyLimit(2**31)
                handle = self._unary_unary(method, handler, gate)
                made = grpc.unary_unary_rpc_method_handler
            # Health is not traced: nearly all of the spans would be of probes.
            self.handlers[method] = made(tracing.served(method, handle) if limited else handle)

    def open(self) -> None:
        """Lets calls in. Until then each is refused with NotYetReady.

        Health and reflection are excepted. A replica on a database without its schema would
        otherwise answer some methods and break in others. Once opened it stays so: of a database
        that goes away later, the methods tell.
        """
        self._opened = True
        self._calls.calls_max = self._streams.calls_max = self._calls_max

    def _no_place(self) -> Refusal:
        return Overloaded() if self._opened else NotYetReady()

    def end_streams(self) -> None:
        """Ends every open response stream with UNAVAILABLE, and those that begin after this.

        Without it one open stream holds up ``server.stop`` for its whole grace.
        """
        self._stopping = True
        for task in self._stream_tasks:
            task.cancel()

    async def ended(self, limit_s: float) -> bool:
        """Waits until no method runs any more, ``limit_s`` at most; returns whether that is so.

        ``server.stop`` returns when every client has its status, which may be before the last
        methods have run their clean-up (grpc#37239): what they use must stay open until then.
        """
        try:
            async with asyncio.timeout(limit_s):
                while self._calls.active or self._streams.active:  # noqa: ASYNC110 - see below
                    # Polled because it happens once in a process's life: a signal would cost
                    # every call a little.
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        return True

    def _unary_unary(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any], gate: ConcurrencyLimit
    ) -> Handle:
        behaviour: Any = handler.unary_unary
        if not inspect.iscoroutinefunction(behaviour):
            raise TypeError(f"{method}: must be written as an async def")
        parse: Any = handler.request_deserializer
        render: Any = handler.response_serializer
        trailing, default_s, fail = self._trailing, self._default_deadline_s, self._fail
        untimed, no_place = self._untimed, self._no_place
        clock = time.perf_counter
        count_ok = metrics.CALLS.labels(method, "OK").inc
        observe = metrics.LATENCY.labels(method).observe

        async def handle(raw: bytes, context: Any) -> bytes:
            if gate.active >= gate.calls_max:
                await fail(method, context, no_place())
            gate.active += 1
            started = clock()
            try:
                context.set_trailing_metadata(trailing)
                left_s = context.time_remaining()
                deadlines.start(default_s if left_s is None else left_s)
                request = _parse(parse, raw)
                check(request)
                if left_s is None:
                    response = await untimed(behaviour, request, context)
                elif left_s > LEAST_S:
                    response = await behaviour(request, context)
                else:
                    raise DeadlineTooShort  # noqa: TRY301 - the table below tells it
                answer: bytes = render(response)
            except BaseException as error:
                await fail(method, context, error)
                raise
            finally:
                gate.active -= 1
                observe(clock() - started)
            count_ok()
            return answer

        return handle

    async def _untimed(self, behaviour: Any, request: Any, context: Any) -> Any:
        """gRPC cancels a call at its client's deadline; at ours nobody else would."""
        watched = self._watch.watch()
        try:
            return await behaviour(request, context)
        except asyncio.CancelledError:
            if not watched.late or watched.task is None or watched.task.uncancel():
                raise
            raise deadlines.DeadlineExceeded from None
        finally:
            watched.end()

    def _stream(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any], gate: ConcurrencyLimit
    ) -> Handle:
        responses = (_of_requests if handler.request_streaming else _of_a_request)(method, handler)
        render: Any = handler.response_serializer
        count_ok = metrics.CALLS.labels(method, "OK").inc

        async def handle(raw: Any, context: Any) -> None:
            if gate.active >= gate.calls_max:
                await self._fail(method, context, self._no_place())
            if self._stopping:
                await self._fail(method, context, Stopping())
            gate.active += 1
            task = asyncio.current_task()
            assert task is not None
            self._stream_tasks.add(task)
            try:
                context.set_trailing_metadata(self._trailing)
                # No default here: a stream may be watched for as long as its client likes.
                deadlines.start(context.time_remaining())
                async with aclosing(responses(raw, context)) as answers:
                    async for response in answers:
                        await context.write(render(response))
            except BaseException as error:
                if self._stopping and isinstance(error, asyncio.CancelledError):
                    error = Stopping()
                await self._fail(method, context, error)
                raise
            finally:
                self._stream_tasks.discard(task)
                gate.active -= 1
            count_ok()

        return handle

    async def _fail(self, method: str, context: Any, error: BaseException) -> None:
        """Ends the call with the status of what went wrong. Returns only if none can be sent."""
        refusal = self._refusal(method, error)
        if refusal is None:
            return
        status = to_status(refusal)
        code = GRPC_CODES[status.code]
        metrics.CALLS.labels(method, code.name).inc()
        details = (DETAILS_KEY, status.SerializeToString())
        await context.abort(code, status.message, (*self._trailing, *_pushback(status), details))

    def _refusal(self, method: str, error: BaseException) -> Refusal | None:
        """What the client is told of an exception; None where there is nobody to tell."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is None or task.cancelling():
                # The client hung up or its deadline passed, and gRPC cancelled the call's task.
                code = Code.DEADLINE_EXCEEDED if deadlines.cut_off() else Code.CANCELLED
                metrics.CALLS.labels(method, code.name).inc()
                return None
            # Something that the method awaited was cancelled, not the call. Passing this on would
            # end the task without a status, and the client would wait for its whole deadline.
        elif isinstance(error, TimeoutError):
            left_s = deadlines.remaining()
            if left_s is not None and left_s < CLOCK_SLACK_S:
                return deadlines.DeadlineExceeded()
        elif not isinstance(error, Exception) or isinstance(error, grpc.aio.AbortError):
            return None
        error_id = uuid.uuid4().hex
        metrics.UNEXPECTED.labels(method).inc()
        _log.error("unexpected error", method=method, error_id=error_id, exc_info=error)
        return Internal(error_id=error_id)


def _pushback(status: Status) -> tuple[tuple[str, str], ...]:
    """When a client's gRPC may send the call again by itself: as RetryInfo says, or -1 for never.

    The -1 goes with UNAVAILABLE only: gRPC counts it as a failure towards its throttling of
    retries, which a client that asks for more than there is has not deserved.
    """
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return ((PUSHBACK_KEY, str(retry.retry_delay.ToMilliseconds())),)
    return _NEVER if GRPC_CODES[status.code] is grpc.StatusCode.UNAVAILABLE else ()


def _of_a_request(method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> Responses:
    behaviour: Any = handler.unary_stream
    _must_generate(method, behaviour)
    parse: Any = handler.request_deserializer

    def responses(raw: Any, context: Any) -> AsyncGenerator[Any, None]:
        request = _parse(parse, raw)
        check(request)
        answers: AsyncGenerator[Any, None] = behaviour(request, context)
        return answers

    return responses


def _of_requests(method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> Responses:
    behaviour: Any = handler.stream_stream
    _must_generate(method, behaviour)
    parse: Any = handler.request_deserializer

    async def parsed(raws: AsyncIterable[bytes]) -> AsyncIterator[Any]:
        async for raw in raws:
            request = _parse(parse, raw)
            check(request)
            yield request

    def responses(raws: Any, context: Any) -> AsyncGenerator[Any, None]:
        answers: AsyncGenerator[Any, None] = behaviour(parsed(raws), context)
        return answers

    return responses


def _must_generate(method: str, behaviour: Any) -> None:
    if not inspect.isasyncgenfunction(behaviour):
        raise TypeError(f"{method}: must be written as an async generator")


def _parse(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    if len(raw) > MESSAGE_BYTES_MAX:
        told = f"takes {len(raw)} bytes; a message may have {MESSAGE_BYTES_MAX} at most"
        raise InvalidField("request", told)
    try:
        return parse(raw)
    except DecodeError:
        raise InvalidField("request", "is not a well-formed message of its type") from None
