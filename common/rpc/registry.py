"""The methods of a server, by full name: registration, the handler of a call, start and end.

What runs around each method is in ``common.rpc.handlers``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Final

import grpc

from common import tracing
from common.errors import ReplicaStopping
from common.rpc import reasons
from common.rpc.admission import Admission
from common.rpc.call_ends import CallEnds, Context
from common.rpc.call_log import CallLog
from common.rpc.client_address import ClientAddress
from common.rpc.concurrency import ConcurrencyLimit
from common.rpc.guard import Guard
from common.rpc.handlers import Handler, Handlers, function_of
from common.rpc.open_streams import OpenStreams
from common.rpc.pauses import Pauses
from common.rpc.rate_limit import RateLimits
from common.rpc.reception import Reception, writing
from common.rpc.stream_shares import StreamShares
from common.rpc.unsent import UnsentResponses

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
        self._pauses = pauses
        self._guarded = guard is not None
        self._exempt = exempt
        self._calls_max = calls_max
        # No slots until ``open``. Streams wait more than they work: they must not take the slots
        # of unary calls.
        self._unary = ConcurrencyLimit(0)
        self._streams = ConcurrencyLimit(0)
        self._unlimited = ConcurrencyLimit(_NO_LIMIT)
        # A client watches health once per connection.
        self._exempt_streams = ConcurrencyLimit(connections_max)
        addresses = addresses or ClientAddress(())
        self._shares = StreamShares(addresses)
        self._ends = CallEnds(replica, log)
        self._reception = Reception(self._ends, default_deadline_s, addresses)
        # Health is served whatever else is waited for.
        self._exempt_reception = Reception(self._ends, default_deadline_s, addresses)
        self._open_streams = OpenStreams()
        self._around = Handlers(
            self._ends,
            Admission(self._ends, self._open_streams, guard, limits, exempt),
            self._open_streams,
            UnsentResponses(addresses),
            pauses=pauses,
            log=log,
            logs_ok=log.all or self._guarded,
            default_deadline_s=default_deadline_s,
        )

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
                reasons.count_from_zero(method, function_of(handler))
            self._register(method, handler, exempt=exempt)

    def _register(self, method: str, handler: Handler, *, exempt: bool) -> None:
        reception = self._exempt_reception if exempt else self._reception
        arrived: Any = reception.arrived
        handle: Callable[..., Awaitable[Any]]
        if handler.response_streaming:
            limit = self._exempt_streams if exempt else self._streams
            share = self._shares.of_exempt if exempt else self._shares.of_caller
            stream = self._around.stream(method, handler, limit, share)
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
            unary = self._around.unary(method, handler, limit)
            handle = unary if exempt else tracing.served(method, unary)
            self._handlers[method] = grpc.unary_unary_rpc_method_handler(handle, arrived)
            timed = reception.timed(method, writing(handle))
            if handle is unary and not exempt and self._guarded:
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
        self._unary.slots = self._streams.slots = self._calls_max

    def end_streams(self) -> None:
        """End every open response stream with ReplicaStopping, and refuse new ones.

        Otherwise one open stream would make ``server.stop`` wait for its whole grace.
        """
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
