"""The gRPC server of a service: its options, health, reflection, start and drain."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.addresses import split_host_port
from common.rpc import reflection
from common.rpc.handlers import MESSAGE_BYTES_MAX, Pipeline
from common.rpc.health import Health, Ready
from common.settings import source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from common.settings import ServiceSettings

# What gRPC itself takes in: above the pipeline's limit, so that a message that is somewhat too
# large gets a refusal that says so, and few times above, so that refusing uses little memory.
RECEIVE_BYTES_MAX: Final = 4 * MESSAGE_BYTES_MAX
PENDING_MAX: Final = 20_000
# Unary calls and streams have their places apart; as many again may be on their way to a refusal.
STREAMS_PER_PLACE: Final = 3
STREAMS_LEAST: Final = 100
METADATA_BYTES_MAX: Final = 8 * 1024
# Clients ping every 30 s (common.rpc.client); the server's default would end their connections.
CLIENT_PING_LEAST_MS: Final = 10_000
KEEPALIVE_MS: Final = 60_000
KEEPALIVE_TIMEOUT_MS: Final = 20_000
# What a connection that has reached its age leaves to its calls, at least: more than the published
# time limits (30 s, protos/service_config.py). Streams end with it, and are taken up again.
AGE_GRACE_S: Final = 40.0
# What cancelled methods get to roll back, after the grace.
CLEAN_UP_S: Final = 5.0

# Of a family that this machine does not have.
_NO_SUCH_ADDRESS: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})

_HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_log = structlog.get_logger(__name__)


class PortTaken(Exception):  # noqa: N818 - a fact, told to the operator
    """The address cannot be listened on. The text is one line that names the setting and why."""

    def __init__(self, setting: str, address: str) -> None:
        reason = _reason_against(address) or "it was in use until just now"
        super().__init__(f"{setting}: cannot listen on {address}: {reason}")


class GrpcServer:
    """One service's server. Make it in the running loop, mount, start, and drain at the end."""

    def __init__(self, settings: ServiceSettings, *, ready: Ready) -> None:
        """``ready`` returns while the service can serve, and raises with the reason otherwise."""
        self.health = Health()
        self._settings = settings
        self._ready = ready
        self._mounted: list[str] = []
        self._pipeline = Pipeline(
            replica=settings.replica,
            calls_max=settings.max_concurrent_calls,
            default_deadline_s=settings.default_deadline_s,
        )
        self._server = grpc.aio.server(options=_options(settings))
        self._probing: asyncio.Task[None] | None = None
        self._ended: asyncio.Task[bool] | None = None

    def mount(self, add: Callable[[Any, Any], None], servicer: object, full_name: str) -> None:
        """Serves ``servicer``, registered by its generated ``add_…_to_server``.

        Raises TypeError if a method of the service is not implemented.
        """
        before = len(self._pipeline.handlers)
        add(servicer, self._pipeline)
        assert len(self._pipeline.handlers) > before
        self._mounted.append(full_name)

    async def start(self) -> int:
        """Listens, and returns the port. Raises PortTaken if the address cannot be had.

        Health is NOT_SERVING until the first probe has passed, and calls are refused.
        """
        health: Any = _Collected()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, health)
        self._pipeline.wrap(_HEALTH, health.handlers, limited=False)
        if self._settings.reflection:
            told = reflection.handler((*self._mounted, _HEALTH))
            for name in reflection.NAMES:
                self._pipeline.wrap(name, {reflection.METHOD: told}, limited=False)
        self._server.add_generic_rpc_handlers((_Methods(self._pipeline.handlers),))
        bind = self._settings.bind
        try:
            # gRPC is content with one of a name's addresses; behind the others of `localhost`
            # clients would go on to reach whoever holds the port there.
            port = 0 if _reason_against(bind) else self._server.add_insecure_port(bind)
        except RuntimeError:
            port = 0
        if port == 0:
            raise PortTaken(source_of(type(self._settings), "bind"), bind)
        await self._server.start()
        # Made once and never cancelled: cancelling it cancels the future that stop() waits for, and
        # calls that still run would be cut off.
        self._ended = asyncio.create_task(self._server.wait_for_termination())
        self._probing = asyncio.create_task(
            self.health.follow(self._open_when_ready, self._settings.readiness_interval_s)
        )
        _log.info("listening", port=port, services=self._mounted)
        return port

    async def drain(self) -> None:
        """Stops in good order; returns when no call is left.

        NOT_SERVING first and a while for clients to notice, then no new calls, and the grace for
        those that run; whoever is left after it is cancelled.
        """
        self.health.drain()
        _log.info("draining", delay_s=self._settings.drain_delay_s, grace_s=self._settings.grace_s)
        await asyncio.sleep(self._settings.drain_delay_s)
        self._pipeline.end_streams()
        await self._server.stop(self._settings.grace_s)
        if not await self._pipeline.ended(CLEAN_UP_S):
            _log.warning("methods still run", after_s=CLEAN_UP_S)
        if self._probing is not None:
            self._probing.cancel()
            with suppress(asyncio.CancelledError):
                await self._probing
        _log.info("drained")

    async def ended(self) -> None:
        """Returns when the server has stopped, for whatever reason.

        Raises what ended the probing, if anything did: health would say for ever what it said last.
        """
        assert self._ended is not None
        assert self._probing is not None
        # Neither is cancelled with whoever waits here.
        await asyncio.wait({self._ended, self._probing}, return_when=asyncio.FIRST_COMPLETED)
        if not (self._ended.done() or self._probing.cancelled()):
            self._probing.result()

    async def _open_when_ready(self) -> None:
        await self._ready()
        self._pipeline.open()


class _Methods(grpc.GenericRpcHandler):
    """Finds a call's handler by its full name.

    The only registration that the server gets: each registered method would be one more future
    that grpc.aio waits on, anew for every call.
    """

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)


class _Collected:
    """Takes what a generated ``add_…_to_server`` registers, as a server would."""

    def __init__(self) -> None:
        self.handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Ignored: the same handlers come by name as well."""

    def add_registered_method_handlers(self, _: str, handlers: Mapping[str, Any]) -> None:
        self.handlers = handlers


def _reason_against(address: str) -> str:
    """Why the address cannot be listened on, by trying, for gRPC does not tell; empty if it can.

    Of a name's addresses each that this machine has must be free.
    """
    host, port = split_host_port(address)
    reason = ""
    tried = 0
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        return _told(error)
    for family, kind, protocol, _, where in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # As servers do: connections of a predecessor that linger do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(where)
                probe.listen()
        except OSError as error:
            reason = reason or _told(error)
            if error.errno in _NO_SUCH_ADDRESS:
                continue
            return _told(error)
        tried += 1
    return "" if tried else reason


def _told(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _options(settings: ServiceSettings) -> list[tuple[str, int]]:
    age_ms = round(settings.max_connection_age_s * 1000)
    age_grace_s = max(AGE_GRACE_S, settings.default_deadline_s)
    return [
        # A second server on the same port would otherwise bind silently and take half the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
        # Beyond its limit of calls not yet picked up gRPC drops some with a bare CANCELLED.
        # Refusing is the pipeline's task, which says OVERLOADED and when to come again.
        ("grpc.server.max_pending_requests", PENDING_MAX),
        ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_MAX),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES_MAX),
        ("grpc.max_connection_age_ms", age_ms),
        ("grpc.max_connection_age_grace_ms", round(age_grace_s * 1000)),
        # A call whose message is still to come is not yet the pipeline's to count or to refuse:
        # this bounds them, and what their messages take. Clients keep what is beyond it waiting.
        (
            "grpc.max_concurrent_streams",
            max(STREAMS_LEAST, STREAMS_PER_PLACE * settings.max_concurrent_calls),
        ),
        # It would count calls that have ended and are not freed yet and refuse clients that keep to
        # the bound, with a bare UNAVAILABLE.
        ("grpc.http.overload_protection", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", CLIENT_PING_LEAST_MS),
    ]
