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
    Collection,
    Iterable,
    Mapping,
)
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import partial
from typing import Any, Final, TypeAlias, cast

import grpc
from google.protobuf.message import Message

from common import deadlines, metrics, tracing
from common.errors import (
    DeadlineTooShort,
    Overloaded,
    Paused,
    Refusal,
    ReplicaNotReady,
    ReplicaStopping,
)
from common.identity.caller import Caller, Kind
from common.rpc import reasons
from common.rpc.admission import Admission
from common.rpc.bulk import BulkRequest, is_bulk
from common.rpc.call_ends import Call, CallEnds, Context
from common.rpc.call_log import CallLog
from common.rpc.client_address import ClientAddress
from common.rpc.concurrency import ConcurrencyLimit
from common.rpc.default_deadline import DefaultDeadline
from common.rpc.guard import Admitted, Guard, OpenGuard
from common.rpc.open_streams import OpenStreams
from common.rpc.pauses import Pauses, is_marked
from common.rpc.rate_limit import RateLimits, counting_replays
from common.rpc.reception import Reception, writing
from common.rpc.shares import Shares
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
UnaryMethod: TypeAlias = Callable[[Message, Context], Awaitable[Message]]
Given: TypeAlias = bytes | Admitted | AsyncIterator[bytes]
"""What arrives: a request's bytes, or a call that identity and access have admitted. Only
reflection, which has neither, takes a stream of requests."""
StreamMethod: TypeAlias = Callable[
    [Message | AsyncIterator[Message], Context], AsyncGenerator[Message, None]
]

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
        connections_max: int,
        default_deadline_s: float,
        log: CallLog,
        pauses: Pauses,
        guard: Guard | None = None,
        limits: RateLimits | None = None,
        addresses: ClientAddress | None = None,
        exempt: Collection[str] = (),
    ) -> None:
        """``guard``: identity and access; None admits everyone. ``limits``: None: no rate is
        limited. ``addresses``: finds the address of a client; None: there are no proxies.
        ``exempt``: full names of services without guard and limits, and without concurrency limit,
        spans and log lines; they are never paused."""
        self.services: list[str] = []
        """Full names of the registered services."""
        self._handlers: dict[str, Handler] = {}
        self._admitting_of: dict[str, Callable[..., Awaitable[bytes]]] = {}
        """Unary methods behind a guard that get the metadata of each call."""
        self._timed: dict[str, tuple[Reception, Handler]] = {}
        """What receives a method's requests within a time limit (``common.rpc.reception``)."""
        self._log = log
        self._pauses = pauses
        self._guard = guard
        self._exempt = exempt
        self._calls_max = calls_max
        # No slots until ``open``. Streams wait more than they work: they must not take the slots
        # of unary calls.
        self._unary = ConcurrencyLimit(0)
        self._streams = ConcurrencyLimit(0)
        self._unlimited = ConcurrencyLimit(_NO_LIMIT)
        # A client watches health once per connection.
        self._exempt_streams = ConcurrencyLimit(connections_max)
        self._addresses = addresses or ClientAddress(())
        self._exempt_shares = Shares()
        self._public_shares = Shares()
        self._default_deadline = DefaultDeadline(default_deadline_s)
        self._ends = CallEnds(replica, log)
        self._reception = Reception(self._ends, default_deadline_s, self._addresses)
        # Health is served whatever else is waited for.
        self._exempt_reception = Reception(self._ends, default_deadline_s, self._addresses)
        self._unsent = UnsentResponses(self._addresses)
        self._open_streams = OpenStreams()
        self._admission = Admission(self._ends, self._open_streams, guard, limits, exempt)
        self._opened = False
        self._stopping = False

    # -- registration ------------------------------------------------------------------------------

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Do nothing: generated code registers the same methods by name as well."""

    def add_registered_method_handlers(
        self, service_name: str, handlers: Mapping[str, Handler]
    ) -> None:
        """Wrap each method of a service.

        Raises TypeError if one is not implemented, or has a guard and admits nobody.
        """
        self.services.append(service_name)
        exempt = service_name in self._exempt
        if not exempt:
            self._pauses.add(service_name, handlers)
        for name, handler in handlers.items():
            method = f"/{service_name}/{name}"
            if exempt:
                self._ends.unlogged.add(method)
            else:
                reasons.count_from_zero(method, _function(handler))
            self._register(method, handler, exempt=exempt)

    def _register(self, method: str, handler: Handler, *, exempt: bool) -> None:
        reception = self._exempt_reception if exempt else self._reception
        arrived: Any = reception.arrived
        handle: Callable[..., Awaitable[Any]]
        if handler.response_streaming:
            limit = self._exempt_streams if exempt else self._streams
            stream = self._handle_stream(method, handler, limit)
            handle = stream if exempt else tracing.served(method, stream)
            if handler.request_streaming:
                self._handlers[method] = grpc.stream_stream_rpc_method_handler(handle)
                return
            self._handlers[method] = grpc.unary_stream_rpc_method_handler(handle, arrived)
            timed = reception.timed(method, handle)
        elif handler.request_streaming:
            raise TypeError(f"{method}: a stream of requests with one response: not supported")
        else:
            limit = self._unlimited if exempt else self._unary
            unary = self._handle_unary(method, handler, limit)
            handle = unary if exempt else tracing.served(method, unary)
            self._handlers[method] = grpc.unary_unary_rpc_method_handler(handle, arrived)
            timed = reception.timed(method, writing(handle))
            if handle is unary and not exempt and self._guard is not None:
                self._admitting_of[method] = unary
        self._timed[method] = reception, grpc.stream_stream_rpc_method_handler(timed)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a call, by the full name of its method."""
        method = handler_call_details.method
        timed = self._timed.get(method)
        if timed is not None and not timed[0].enter():
            return timed[1]
        admitting = self._admitting_of.get(method)
        if admitting is None:
            return self._handlers.get(method)
        metadata = handler_call_details.invocation_metadata
        return _OfOneCall(partial(admitting, metadata=metadata), self._reception.arrived)

    @property
    def running(self) -> int:
        """How many calls run, but those of exempt services."""
        return self._unary.running + self._streams.running

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
        self._open_streams.end_all(ReplicaStopping())

    async def finished_within(self, limit_s: float) -> bool:
        """Whether all methods end within ``limit_s`` seconds.

        ``server.stop`` returns when every client has its status. The last methods may still run
        their clean-up then (grpc#37239), and what they use must stay open.
        """
        try:
            async with asyncio.timeout(limit_s):
                # Polled, since it happens once per process: an event would cost every call a bit.
                while self.running:  # noqa: ASYNC110
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
        parse, to_bytes = _codec(handler)
        serialize = self._unsent.counted(method, to_bytes)
        guard = self._admission.guard_of(method, parse, bytes_max)
        rate_limit = self._admission.limit_of(method)
        run = counting_replays(run, rate_limit)
        read = partial(parse_request, parse, bytes_max=bytes_max) if guard is None else _validated
        # Everything is looked up once per method, not once per call.
        trailing, abort, refusal_if_full = (
            self._ends.trailing,
            self._ends.abort,
            self._refusal_if_full,
        )
        default, pauses = self._default_deadline, self._pauses
        count_ok = metrics.CALLS.labels(method, "OK", "").inc
        observe = metrics.LATENCY.labels(method).observe
        clock = time.perf_counter
        log_ok = self._log.write if self._logs_ok(method) else None

        async def handle(given: Any, context: Context) -> bytes:
            started = clock()
            request: Message | None = None
            if method in pauses.methods and not _goes_on(given, context):
                await abort(Call(method, context, started), Paused())
            if limit.running >= limit.slots:
                await abort(Call(method, context, started), refusal_if_full())
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

        open_guard = OpenGuard(parse, bytes_max)
        return self._admission.before_unary(guard or open_guard, rate_limit, method, handle)

    def _handle_stream(
        self, method: str, handler: Handler, limit: ConcurrencyLimit
    ) -> Callable[[bytes | AsyncIterator[bytes], Context], Awaitable[None]]:
        function = _function(handler)
        if not inspect.isasyncgenfunction(function):
            raise TypeError(f"{method}: must be an async generator")
        run = cast(StreamMethod, function)
        parse, serialize = _codec(handler)
        guard = self._admission.guard_of(method, parse, MESSAGE_BYTES_MAX)
        rate_limit = self._admission.limit_of(method)
        count_ok = metrics.CALLS.labels(method, "OK", "").inc
        logs_ok = self._logs_ok(method)

        async def handle(given: Given, context: Context) -> None:
            call = Call(method, context, time.perf_counter(), None, _caller(given))
            if method in self._pauses.methods and not _goes_on(given, context):
                await self._ends.abort(call, Paused())
            if limit.running >= limit.slots:
                await self._ends.abort(call, self._refusal_if_full())
            if self._stopping:
                await self._ends.abort(call, ReplicaStopping())
            limit.running += 1
            task = self._open_streams.add()
            try:
                context.set_trailing_metadata(self._ends.trailing)
                # No default deadline: a client may watch a stream for as long as it likes.
                deadlines.start(context.time_remaining())
                request = _read(parse, given)
                call = call._replace(request=request if isinstance(request, Message) else None)
                with self._share_of_streams(given, context, limit):
                    async with aclosing(run(request, context)) as responses:
                        async for response in responses:
                            await context.write(serialize(response))
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError):
                    error = self._open_streams.ending(task) or error
                await self._ends.abort(call, error)
                raise
            finally:
                self._open_streams.remove(task)
                limit.running -= 1
            count_ok()
            if logs_ok:
                self._log.write(method, "OK", "", call.started, call.request, call.caller)

        open_guard = OpenGuard(parse, MESSAGE_BYTES_MAX)
        return self._admission.before_stream(guard or open_guard, rate_limit, method, handle)

    def _share_of_streams(
        self, given: Given, context: Context, limit: ConcurrencyLimit
    ) -> AbstractContextManager[None]:
        """Counts a stream as one of its client's: raises Overloaded or RateLimited on entry.

        Services and operators may open any number, and so may everyone where identity is off.
        """
        if limit is self._exempt_streams:
            return self._exempt_shares.taken(self._addresses.share_of(context), limit.slots)
        if not isinstance(given, Admitted):
            return nullcontext()
        if given.caller is not None:
            is_user = given.caller.kind is Kind.USER
            return self._open_streams.of_user(given.caller.subject) if is_user else nullcontext()
        address = self._addresses.address_of(context)
        return nullcontext() if address is None else self._public_shares.taken(address, limit.slots)

    def _logs_ok(self, method: str) -> bool:
        """Whether calls of the method that succeed may be logged: the log knows which."""
        return (self._log.all or self._guard is not None) and method not in self._ends.unlogged

    def _refusal_if_full(self) -> Refusal:
        return Overloaded() if self._opened else ReplicaNotReady()


class _OfOneCall(grpc.RpcMethodHandler):  # type: ignore[type-arg]
    """The handler of one unary call, which has the call's metadata.

    grpc.aio has built the metadata to look the handler up. To build it once more for the token is
    a third of what identity costs a call.
    """

    request_streaming = response_streaming = False
    response_serializer = None
    unary_stream = stream_unary = stream_stream = None

    def __init__(
        self,
        unary_unary: Callable[[bytes, Context], Awaitable[bytes]],
        arrived: Callable[[bytes], bytes],
    ) -> None:
        self.unary_unary: Any = unary_unary
        self.request_deserializer: Any = arrived


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
