"""What runs around every gRPC method of a server. One function per method, built at registration.

    paused? → concurrency limit → parse, validate → deadline → the method → serialize → status
    → metrics

Where calls are traced, a span is around all of it (``common.tracing``).

This is not a chain of interceptors: grpc.aio resolves those anew for each call, and an interceptor
cannot choose the status of an exception. One function per method costs a call a few microseconds.

Requests are parsed and responses serialized here, not by gRPC: to a malformed message gRPC would
reply with the text of the exception.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
)
from contextlib import aclosing
from typing import Any, Final, NamedTuple, TypeAlias, cast

import grpc
from google.protobuf.message import Message

from common import deadlines, metrics, tracing
from common.errors import (
    Code,
    DeadlineTooShort,
    Overloaded,
    Paused,
    PeerUnavailable,
    Refusal,
    ReplicaNotReady,
    ReplicaStopping,
)
from common.rpc import reasons
from common.rpc.bulk import BulkRequest, is_bulk
from common.rpc.call_log import CallLog
from common.rpc.concurrency import ConcurrencyLimit
from common.rpc.default_deadline import DefaultDeadline
from common.rpc.pauses import Pauses, is_internal
from common.rpc.status import GRPC_CODES, retry_pushback, to_status
from common.rpc.unexpected import refusal_for
from common.rpc.validation import (
    BULK_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    Parse,
    parse_request,
    parse_stream,
)
from tally_client.rpc.answer import DETAILS_KEY

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
Serialize: TypeAlias = Callable[[Message], bytes]
UnaryMethod: TypeAlias = Callable[[Message, Context], Awaitable[Message]]
StreamMethod: TypeAlias = Callable[
    [Message | AsyncIterator[Message], Context], AsyncGenerator[Message, None]
]

REPLICA_KEY: Final = "tally-replica"
LEAST_TIME_S: Final = 0.002
"""A call with less time left cannot be answered in time. It is refused before it costs a database
round trip."""
_NO_LIMIT: Final = 2**31


class HandlerRegistry(grpc.GenericRpcHandler):
    """The wrapped methods of a server, by full name.

    Generated ``add_…_to_server`` functions register methods here as they would with a server. The
    server gets this registry as its only handler: for each method registered with the server
    itself, grpc.aio would wait on one more future in every call.
    """

    def __init__(
        self,
        *,
        replica: str,
        calls_max: int,
        default_deadline_s: float,
        log: CallLog,
        pauses: Pauses,
        exempt: Collection[str] = (),
    ) -> None:
        """``exempt``: full names of services without a concurrency limit, spans and log lines,
        which are never paused."""
        self.services: list[str] = []
        """Full names of the registered services."""
        self._handlers: dict[str, Handler] = {}
        self._log = log
        self._pauses = pauses
        self._exempt = exempt
        self._unlogged: set[str] = set()
        self._calls_max = calls_max
        # No slots until ``open``. Streams wait more than they work: they must not take the slots
        # of unary calls.
        self._unary = ConcurrencyLimit(0)
        self._streams = ConcurrencyLimit(0)
        self._unlimited = ConcurrencyLimit(_NO_LIMIT)
        self._default_deadline = DefaultDeadline(default_deadline_s)
        self._trailing = ((REPLICA_KEY, replica),)
        self._stream_tasks: set[asyncio.Task[object]] = set()
        self._opened = False
        self._stopping = False
        metrics.IN_FLIGHT.set_function(lambda: self._unary.running + self._streams.running)

    # -- registration ------------------------------------------------------------------------------

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Do nothing: generated code registers the same methods by name as well."""

    def add_registered_method_handlers(
        self, service_name: str, handlers: Mapping[str, Handler]
    ) -> None:
        """Wrap each method of a service. Raises TypeError if one is not implemented."""
        self.services.append(service_name)
        exempt = service_name in self._exempt
        if not exempt:
            self._pauses.add(service_name, handlers)
        for name, handler in handlers.items():
            method = f"/{service_name}/{name}"
            if exempt:
                self._unlogged.add(method)
            else:
                reasons.count_from_zero(method, _function(handler))
            if handler.response_streaming:
                limit = self._unlimited if exempt else self._streams
                handle = self._handle_stream(method, handler, limit)
                register = (
                    grpc.stream_stream_rpc_method_handler
                    if handler.request_streaming
                    else grpc.unary_stream_rpc_method_handler
                )
                self._handlers[method] = register(
                    handle if exempt else tracing.served(method, handle)
                )
            elif handler.request_streaming:
                raise TypeError(f"{method}: a stream of requests with one response: not supported")
            else:
                limit = self._unlimited if exempt else self._unary
                call = self._handle_unary(method, handler, limit)
                self._handlers[method] = grpc.unary_unary_rpc_method_handler(
                    call if exempt else tracing.served(method, call)
                )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a call, by the full name of its method."""
        return self._handlers.get(handler_call_details.method)

    # -- start and end -----------------------------------------------------------------------------

    def open(self) -> None:
        """Accept calls. Until then each call is refused with ReplicaNotReady.

        Exempt services are served from the start. A replica without its database schema would
        otherwise answer some methods and fail in others. The registry stays open when the database
        fails later: the methods report that.
        """
        self._opened = True
        self._unary.slots = self._streams.slots = self._calls_max

    def end_streams(self) -> None:
        """End every open response stream with ReplicaStopping, and refuse new ones.

        Otherwise one open stream would make ``server.stop`` wait for its whole grace.
        """
        self._stopping = True
        for task in self._stream_tasks:
            task.cancel()

    async def finished_within(self, limit_s: float) -> bool:
        """Whether all methods end within ``limit_s`` seconds.

        ``server.stop`` returns when every client has its status. The last methods may still run
        their clean-up then (grpc#37239), and what they use must stay open.
        """
        try:
            async with asyncio.timeout(limit_s):
                # Polled, since it happens once per process: an event would cost every call a bit.
                while self._unary.running or self._streams.running:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        return True

    # -- calls -------------------------------------------------------------------------------------

    def _handle_unary(
        self, method: str, handler: Handler, limit: ConcurrencyLimit
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        function = _function(handler)
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{method}: must be an async def")
        run = cast(UnaryMethod, function)
        bytes_max = MESSAGE_BYTES_MAX
        if is_bulk(run):
            run, bytes_max = _with_slots(run, limit), BULK_BYTES_MAX
        parse, serialize = _codec(handler)
        # Everything is looked up once per method, not once per call.
        trailing, abort, refusal_if_full = self._trailing, self._abort, self._refusal_if_full
        default, pauses = self._default_deadline, self._pauses
        count_ok = metrics.CALLS.labels(method, "OK", "").inc
        observe = metrics.LATENCY.labels(method).observe
        clock = time.perf_counter
        log_ok = self._log.write if self._log.all and method not in self._unlogged else None

        async def handle(raw: bytes, context: Context) -> bytes:
            started = clock()
            request: Message | None = None
            if method in pauses.methods and not is_internal(context):
                await abort(_Call(method, context, started), Paused())
            if limit.running >= limit.slots:
                await abort(_Call(method, context, started), refusal_if_full())
            limit.running += 1
            try:
                context.set_trailing_metadata(trailing)
                left_s: float | None = context.time_remaining()
                deadlines.start(default.limit_s if left_s is None else left_s)
                request = parse_request(parse, raw, bytes_max)
                if left_s is None:
                    # gRPC cancels a call at its client's deadline, but not at the server's.
                    response = await default.within(run(request, context))
                elif left_s > LEAST_TIME_S:
                    response = await run(request, context)
                else:
                    raise DeadlineTooShort  # noqa: TRY301 - handled below, as every other error
                reply = serialize(response)
            except BaseException as error:
                await abort(_Call(method, context, started, request), error)
                raise
            finally:
                limit.running -= 1
                observe(clock() - started)
            count_ok()
            if log_ok is not None:
                log_ok(method, "OK", "", started, request)
            return reply

        return handle

    def _handle_stream(
        self, method: str, handler: Handler, limit: ConcurrencyLimit
    ) -> Callable[[bytes | AsyncIterator[bytes], Context], Awaitable[None]]:
        function = _function(handler)
        if not inspect.isasyncgenfunction(function):
            raise TypeError(f"{method}: must be an async generator")
        run = cast(StreamMethod, function)
        parse, serialize = _codec(handler)
        count_ok = metrics.CALLS.labels(method, "OK", "").inc

        async def handle(raw: bytes | AsyncIterator[bytes], context: Context) -> None:
            call = _Call(method, context, time.perf_counter())
            if method in self._pauses.methods and not is_internal(context):
                await self._abort(call, Paused())
            if limit.running >= limit.slots:
                await self._abort(call, self._refusal_if_full())
            if self._stopping:
                await self._abort(call, ReplicaStopping())
            limit.running += 1
            task = asyncio.current_task()
            assert task is not None
            self._stream_tasks.add(task)
            try:
                context.set_trailing_metadata(self._trailing)
                # No default deadline: a client may watch a stream for as long as it likes.
                deadlines.start(context.time_remaining())
                read = (
                    parse_request(parse, raw)
                    if isinstance(raw, bytes)
                    else parse_stream(parse, raw)
                )
                async with aclosing(run(read, context)) as responses:
                    async for response in responses:
                        await context.write(serialize(response))
            except BaseException as error:
                if self._stopping and isinstance(error, asyncio.CancelledError):
                    error = ReplicaStopping()
                await self._abort(call, error)
                raise
            finally:
                self._stream_tasks.discard(task)
                limit.running -= 1
            count_ok()
            if self._log.all and method not in self._unlogged:
                self._log.write(method, "OK", "", call.started, None)

        return handle

    def _refusal_if_full(self) -> Refusal:
        return Overloaded() if self._opened else ReplicaNotReady()

    async def _abort(self, call: _Call, error: BaseException) -> None:
        """End the call with the status of the error. Returns only if no status can be sent."""
        refusal = refusal_for(call.method, error)
        if refusal is None:
            return
        if isinstance(refusal, Code):
            self._count(call, refusal.value, "")
            return
        status = to_status(refusal)
        code = GRPC_CODES[status.code]
        self._count(call, code.name, refusal.reason or PeerUnavailable.reason)
        details = (DETAILS_KEY, status.SerializeToString())
        await call.context.abort(
            code, status.message, (*self._trailing, *retry_pushback(status), details)
        )

    def _count(self, call: _Call, code: str, reason: str) -> None:
        metrics.CALLS.labels(call.method, code, reason).inc()
        if call.method not in self._unlogged:
            self._log.write(call.method, code, reason, call.started, call.request)


class _Call(NamedTuple):
    """A call that ends without a response."""

    method: str
    context: Context
    started: float
    """By ``time.perf_counter``."""
    request: Message | None = None
    """None if it was not parsed, or is a stream."""


def _with_slots(method: UnaryMethod, limit: ConcurrencyLimit) -> UnaryMethod:
    """The bulk method with a slot taken for each item."""

    async def run(request: Message, context: Context) -> Message:
        with limit.bulk(len(cast(BulkRequest, request).items)):
            return await method(request, context)

    return run


def _function(handler: Handler) -> object:
    """The servicer's method."""
    if handler.response_streaming:
        return handler.stream_stream if handler.request_streaming else handler.unary_stream
    return handler.stream_unary if handler.request_streaming else handler.unary_unary


def _codec(handler: Handler) -> tuple[Parse, Serialize]:
    """How the method's requests are parsed and its responses serialized."""
    assert handler.request_deserializer is not None
    assert handler.response_serializer is not None
    return handler.request_deserializer, handler.response_serializer
