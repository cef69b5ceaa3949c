"""What runs around every gRPC method of a server. One function per method, built at registration.

    identity, access → rate limit → paused? → concurrency limit → parse, validate → deadline
    → the method → serialize → status → metrics

Identity and access are there where ``TALLY_AUTH=required`` (``common.rpc.guard``), rate limits
there and where a setting asks for them (``common.rpc.rate_limit``).
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
)
from contextlib import aclosing
from functools import partial
from typing import Any, Final, TypeAlias, cast

import grpc
from google.protobuf.message import Message

from common import deadlines, metrics
from common.errors import (
    DeadlineTooShort,
    Overloaded,
    Paused,
    Refusal,
    ReplicaNotReady,
)
from common.identity.caller import Caller
from common.rpc.admission import Admission
from common.rpc.bulk import BulkRequest, is_bulk
from common.rpc.call_ends import Call, CallEnds, Context
from common.rpc.call_log import CallLog
from common.rpc.concurrency import ConcurrencyLimit
from common.rpc.default_deadline import DefaultDeadline
from common.rpc.guard import Admitted, OpenGuard
from common.rpc.open_streams import OpenStreams
from common.rpc.pauses import Pauses, is_marked
from common.rpc.rate_limit import UnaryMethod, counting_replays
from common.rpc.stream_shares import ShareOfStream
from common.rpc.unsent import UnsentResponses
from common.rpc.validation import (
    BULK_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    Parse,
    check,
    parse_request,
    parse_stream,
)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Serialize: TypeAlias = Callable[[Message], bytes]
Given: TypeAlias = bytes | Admitted | AsyncIterator[bytes]
"""What arrives: a request's bytes, or a call that identity and access have admitted. Only
reflection, which has neither, takes a stream of requests."""
StreamMethod: TypeAlias = Callable[
    [Message | AsyncIterator[Message], Context], AsyncGenerator[Message, None]
]

LEAST_TIME_S: Final = 0.002
"""A call with less time left cannot be answered in time. It is refused before it costs a database
round trip."""


class Handlers:
    """Puts around each method of one server what all of them have."""

    def __init__(
        self,
        ends: CallEnds,
        admission: Admission,
        streams: OpenStreams,
        unsent: UnsentResponses,
        *,
        pauses: Pauses,
        log: CallLog,
        logs_ok: bool,
        default_deadline_s: float,
    ) -> None:
        """``logs_ok``: whether calls that succeed may be logged; the log decides which."""
        self._ends = ends
        self._admission = admission
        self._streams = streams
        self._unsent = unsent
        self._pauses = pauses
        self._log = log
        self._logs_ok = logs_ok
        self._default_deadline = DefaultDeadline(default_deadline_s)

    def unary(
        self, method: str, handler: Handler, limit: ConcurrencyLimit
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """The handler of a unary method. Raises TypeError if it is no ``async def``."""
        function = function_of(handler)
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{method}: must be an async def")
        run = cast(UnaryMethod, function)
        bytes_max = MESSAGE_BYTES_MAX
        if is_bulk(run):
            run, bytes_max = _with_slots(run, limit), BULK_BYTES_MAX
        parse, to_bytes = _codec(handler)
        serialize = self._unsent.counted(method, to_bytes)
        guard = self._admission.guard_of(method, parse, bytes_max)
        rate_limit = self._admission.limit_of(method)
        run = counting_replays(run, rate_limit)
        read = partial(parse_request, parse, bytes_max=bytes_max) if guard is None else _validated
        # Everything is looked up once per method, not once per call.
        trailing, abort = self._ends.trailing, self._ends.abort
        default, pauses = self._default_deadline, self._pauses
        count_ok = metrics.CALLS.labels(method, "OK", "").inc
        observe = metrics.LATENCY.labels(method).observe
        clock = time.perf_counter
        log_ok = self._log.write if self._log_ok(method) else None

        async def handle(given: Any, context: Context) -> bytes:
            started = clock()
            request: Message | None = None
            if method in pauses.methods and not _goes_on(given, context):
                await abort(Call(method, context, started), Paused())
            if limit.running >= limit.slots:
                await abort(Call(method, context, started), _refusal_if_full(limit))
            limit.running += 1
            try:
                context.set_trailing_metadata(trailing)
                left_s: float | None = context.time_remaining()
                deadlines.start(default.limit_s if left_s is None else left_s)
                request = read(given)
                if left_s is None:
                    # gRPC cancels a call at its client's deadline, but not at the server's.
                    response = await default.within(run(request, context))
                elif left_s > LEAST_TIME_S:
                    response = await run(request, context)
                else:
                    raise DeadlineTooShort  # noqa: TRY301 - handled below, as every other error
                reply = serialize(response, context)
            except BaseException as error:
                await abort(Call(method, context, started, request, _caller(given)), error)
                raise
            finally:
                limit.running -= 1
                observe(clock() - started)
            count_ok()
            if log_ok is not None:
                log_ok(method, "OK", "", started, request, _caller(given))
            return reply

        return self._admission.before_unary(
            guard or OpenGuard(parse, bytes_max), rate_limit, method, handle
        )

    def stream(
        self, method: str, handler: Handler, limit: ConcurrencyLimit, share: ShareOfStream
    ) -> Callable[[bytes | AsyncIterator[bytes], Context], Awaitable[None]]:
        """The handler of a method that streams. Raises TypeError if it is no async generator."""
        function = function_of(handler)
        if not inspect.isasyncgenfunction(function):
            raise TypeError(f"{method}: must be an async generator")
        run = cast(StreamMethod, function)
        parse, serialize = _codec(handler)
        guard = self._admission.guard_of(method, parse, MESSAGE_BYTES_MAX)
        rate_limit = self._admission.limit_of(method)
        count_ok = metrics.CALLS.labels(method, "OK", "").inc
        logs_ok = self._log_ok(method)

        async def handle(given: Given, context: Context) -> None:
            call = Call(method, context, time.perf_counter(), None, _caller(given))
            if method in self._pauses.methods and not _goes_on(given, context):
                await self._ends.abort(call, Paused())
            if limit.running >= limit.slots:
                await self._ends.abort(call, _refusal_if_full(limit))
            if self._streams.closed is not None:
                await self._ends.abort(call, self._streams.closed)
            limit.running += 1
            task = self._streams.add()
            try:
                context.set_trailing_metadata(self._ends.trailing)
                # No default deadline: a client may watch a stream for as long as it likes.
                deadlines.start(context.time_remaining())
                request = _read(parse, given)
                call = call._replace(request=request if isinstance(request, Message) else None)
                with share(_admitted(given), context, limit.slots):
                    async with aclosing(run(request, context)) as responses:
                        async for response in responses:
                            await context.write(serialize(response))
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError):
                    error = self._streams.ending(task) or error
                await self._ends.abort(call, error)
                raise
            finally:
                self._streams.remove(task)
                limit.running -= 1
            count_ok()
            if logs_ok:
                self._log.write(method, "OK", "", call.started, call.request, call.caller)

        return self._admission.before_stream(
            guard or OpenGuard(parse, MESSAGE_BYTES_MAX), rate_limit, method, handle
        )

    def _log_ok(self, method: str) -> bool:
        return self._logs_ok and method not in self._ends.unlogged


def _refusal_if_full(limit: ConcurrencyLimit) -> Refusal:
    # No slots: the server has not opened.
    return Overloaded() if limit.slots else ReplicaNotReady()


def _admitted(given: Given) -> Admitted | None:
    return given if isinstance(given, Admitted) else None


def _caller(given: Given) -> Caller | None:
    return given.caller if isinstance(given, Admitted) else None


def _goes_on(given: Given, context: Context) -> bool:
    """Whether it is a call of the order service, of whose sagas nothing is paused."""
    if isinstance(given, Admitted):
        return given.caller is not None and given.caller.runs_sagas
    return is_marked(context)


def _validated(admitted: Admitted) -> Message:
    """The request of an admitted call. Raises InvalidFields."""
    check(admitted.request)
    admitted.check_ids()
    return admitted.request


def _read(parse: Parse, given: Given) -> Message | AsyncIterator[Message]:
    """The request of a stream, or its requests."""
    if isinstance(given, Admitted):
        return _validated(given)
    return parse_request(parse, given) if isinstance(given, bytes) else parse_stream(parse, given)


def _with_slots(method: UnaryMethod, limit: ConcurrencyLimit) -> UnaryMethod:
    """The bulk method with a slot taken for each item."""

    async def run(request: Message, context: Context) -> Message:
        with limit.bulk(len(cast(BulkRequest, request).items)):
            return await method(request, context)

    return run


def function_of(handler: Handler) -> object:
    """The servicer's method."""
    if handler.response_streaming:
        return handler.stream_stream if handler.request_streaming else handler.unary_stream
    return handler.stream_unary if handler.request_streaming else handler.unary_unary


def _codec(handler: Handler) -> tuple[Parse, Serialize]:
    """How the method's requests are parsed and its responses serialized."""
    assert handler.request_deserializer is not None
    assert handler.response_serializer is not None
    return handler.request_deserializer, handler.response_serializer
