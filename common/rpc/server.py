"""The gRPC server of a service: options, health, reflection, start and drain."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc

from common import metrics
from common.environment import SettingsError, source_of
from common.rpc import reflection
from common.rpc.call_log import CallLog
from common.rpc.client_address import ClientAddress
from common.rpc.health import NAME as HEALTH
from common.rpc.health import Health, Ready
from common.rpc.pauses import Pauses
from common.rpc.rate_limit import RateLimits
from common.rpc.registry import HandlerRegistry
from common.rpc.validation import BULK_BYTES_MAX, MESSAGE_BYTES_MAX
from common.settings import ServiceSettings
from common.tls import UnusableCertificate
from tally_client.rpc.addresses import split_host_port

if TYPE_CHECKING:
    from common.certificates import CertificateFiles
    from common.rpc.identity import Identity

AddToServer: TypeAlias = Callable[[Any, Any], None]
"""A generated ``add_…Servicer_to_server``."""

RECEIVE_BYTES_MAX: Final = BULK_BYTES_MAX + MESSAGE_BYTES_MAX
"""The transport's own limit. It is above the handlers' limits, so that a message that is somewhat
too large gets a refusal with a reason, and not far above, so that refusing uses little memory."""
PENDING_MAX: Final = 20_000
STREAMS_PER_SLOT: Final = 3
"""Unary calls and streams have separate slots; as many calls again may wait to be refused."""
STREAMS_LEAST: Final = 100
METADATA_BYTES_MAX: Final = 8 * 1024
OWN_FILES: Final = 128
"""File descriptors that connections of clients leave to the replica: for databases, Redis, the
gateway and its files."""
PROBE_CONNECTIONS_MAX: Final = 64
"""Connections to the port of probes: the kubelet opens a few and closes them."""
HANDSHAKE_MS: Final = 10_000
"""How long a connection may take to begin with HTTP/2, and with TLS before it. gRPC's default: two
minutes."""
CLIENT_PING_LEAST_MS: Final = 10_000
"""Clients ping every 30 s (``tally_client.rpc.channels``); gRPC's default would close their
connections."""
KEEPALIVE_MS: Final = 60_000
KEEPALIVE_TIMEOUT_MS: Final = 20_000
AGE_GRACE_S: Final = 40.0
"""How long calls on a connection that has reached its maximum age may still run, at least: more
than the published time limits. Streams end with the connection, and clients open them again."""
CLEAN_UP_S: Final = 5.0
"""How long cancelled methods may take to roll back, after the grace."""

_ADDRESS_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""The address is of another machine, or of a family that this machine does not have."""

_log = structlog.stdlib.get_logger()


class PortTaken(Exception):  # noqa: N818 - a state, not a fault
    """The server cannot listen on its address. The text is one line that names the setting."""

    def __init__(self, setting: str, address: str) -> None:
        problem = listen_problem(address) or "it was in use until just now"
        super().__init__(f"{setting}: cannot listen on {address}: {problem}")


class GrpcServer:
    """One service's server. Create it in the running loop, mount, start, and drain at the end."""

    def __init__(self, settings: ServiceSettings, *, ready: Ready) -> None:
        """``ready`` raises, with the reason, while the service cannot serve.

        Raises SettingsError for certificates that cannot be used.
        """
        self.health = Health()
        self._settings = settings
        self._ready = ready
        self._pauses = Pauses(settings.pause_file)
        addresses = ClientAddress(settings.trusted_proxies)
        self._identity = _identity(settings, addresses)
        self._limits = RateLimits.wanted(settings, addresses)
        registry = partial(
            HandlerRegistry,
            replica=settings.replica,
            default_deadline_s=settings.default_deadline_s,
            log=CallLog(settings.log_calls),
            pauses=self._pauses,
        )
        self._handlers = registry(
            calls_max=settings.max_concurrent_calls,
            connections_max=connections_max(settings),
            addresses=addresses,
            guard=None if self._identity is None else self._identity.guard,
            limits=self._limits,
            # Health must answer under overload, and to probes, which have no token. Without this,
            # nearly all spans would be of probes. Reflection is off where identity is on, unless a
            # setting asks for it.
            exempt={HEALTH, *reflection.NAMES},
        )
        # With limits of its own: what clients do at their port must not fail a probe.
        self._probe_handlers = registry(
            calls_max=0, connections_max=PROBE_CONNECTIONS_MAX, exempt={HEALTH}
        )
        metrics.IN_FLIGHT.set_function(lambda: self._handlers.running)
        self._clients = _certificate(settings, "tls_dir", "clients")
        self._peers = None
        if settings.peer_bind:
            self._peers = _certificate(settings, "peer_tls_dir", "peers", mutual=True)
        self._server = grpc.aio.server(options=_options(settings, connections_max(settings)))
        self._probes: grpc.aio.Server | None = None
        self.ports: dict[str, int] = {}
        """The ports it listens on, by the setting."""
        self._probing: asyncio.Task[None] | None = None
        self._following: list[asyncio.Task[None]] = []
        self._terminated: asyncio.Task[bool] | None = None

    def mount(self, add: AddToServer, servicer: object) -> None:
        """Serve ``servicer``. Raises TypeError if one of its methods is not implemented."""
        add(servicer, self._handlers)

    async def start(self) -> int:
        """Listen, and return the port. Raises PortTaken and SettingsError.

        Until the first probe has passed, health is NOT_SERVING and calls are refused.
        """
        mounted = list(self._handlers.services)
        if self._identity is not None:
            await self._identity.start(mounted)
        add_health: AddToServer = health_pb2_grpc.add_HealthServicer_to_server
        add_health(self.health, self._handlers)
        add_health(self.health, self._probe_handlers)
        if self._reflects():
            methods = {reflection.METHOD: reflection.handler((*mounted, HEALTH))}
            for name in reflection.NAMES:
                self._handlers.add_registered_method_handlers(name, methods)
        self._server.add_generic_rpc_handlers((self._handlers,))
        # Before the first call: a replica that restarts serves nothing that is paused.
        await self._pauses.read()
        port = self._listen(self._server, "bind", self._clients)
        if self._settings.peer_bind:
            self._listen(self._server, "peer_bind", self._peers)
        if self._settings.probe_bind:
            # A server of its own: gRPC cannot serve one port less than another.
            options = _options(self._settings, PROBE_CONNECTIONS_MAX)
            self._probes = grpc.aio.server(handlers=(self._probe_handlers,), options=options)
            self._listen(self._probes, "probe_bind", None)
            await self._probes.start()
        await self._server.start()
        # Created once and never cancelled: that would also cancel the future that ``stop`` waits
        # for, and running calls would be cut off.
        self._terminated = asyncio.create_task(self._server.wait_for_termination())
        self._probing = asyncio.create_task(
            self.health.follow(self._open_when_ready, self._settings.readiness_interval_s)
        )
        self._following = [asyncio.create_task(self._pauses.follow(), name="pauses")]
        self._following += [
            asyncio.create_task(files.follow(), name="certificate")
            for files in (self._clients, self._peers)
            if files is not None
        ]
        most = connections_max(self._settings)
        _log.info("listening", port=port, ports=self.ports, services=mounted, connections_max=most)
        return port

    async def drain(self) -> None:
        """Stop in order; return when no call is left.

        First NOT_SERVING, and a delay for clients to notice. Then no new calls, and the grace for
        running calls. Calls that still run after the grace are cancelled.
        """
        self.health.drain()
        _log.info("draining", delay_s=self._settings.drain_delay_s, grace_s=self._settings.grace_s)
        await asyncio.sleep(self._settings.drain_delay_s)
        self._handlers.end_streams()
        self._probe_handlers.end_streams()
        await self._server.stop(self._settings.grace_s)
        if self._probes is not None:
            await self._probes.stop(0)
        if not await self._handlers.finished_within(CLEAN_UP_S):
            _log.warning("methods still run", after_s=CLEAN_UP_S)
        tasks = [task for task in (self._probing, *self._following) if task is not None]
        for task in tasks:
            task.cancel()
        # What has ended one of them must not leave the rest open.
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._identity is not None:
            await self._identity.stop()
        if self._limits is not None:
            await self._limits.close()
        _log.info("drained")

    async def ended(self) -> None:
        """Return when the server has stopped, for any reason.

        Raises the error that ended the probing, if there is one: health would never change again.
        """
        assert self._terminated is not None
        assert self._probing is not None
        # ``asyncio.wait`` does not cancel them if the caller is cancelled.
        await asyncio.wait({self._terminated, self._probing}, return_when=asyncio.FIRST_COMPLETED)
        if not (self._terminated.done() or self._probing.cancelled()):
            self._probing.result()

    def _listen(
        self, server: grpc.aio.Server, setting: str, certificate: CertificateFiles | None
    ) -> int:
        bind: str = getattr(self._settings, setting)
        port = 0
        # gRPC is content with one of a name's addresses. On another address of ``localhost``
        # clients would then reach the process that holds the port there.
        if not listen_problem(bind):
            with suppress(RuntimeError):
                port = (
                    server.add_insecure_port(bind)
                    if certificate is None
                    else server.add_secure_port(bind, certificate.credentials())
                )
        if port == 0:
            raise PortTaken(source_of(self._settings.service, setting), bind)
        self.ports[setting] = port
        return port

    def _reflects(self) -> bool:
        wanted = self._settings.reflection
        return self._identity is None if wanted is None else wanted

    async def _open_when_ready(self) -> None:
        await self._ready()
        if self._identity is not None:
            self._identity.check_ready()
        self._handlers.open()


def _identity(settings: ServiceSettings, addresses: ClientAddress) -> Identity | None:
    """The identity that the settings ask for; None if it is off."""
    if settings.auth == "off":
        return None
    # PyJWT and cryptography: 8 MB that a replica without identity does not need.
    from common.rpc.identity import Identity  # noqa: PLC0415

    return Identity(settings, addresses)


def _certificate(
    settings: ServiceSettings, setting: str, port: str, *, mutual: bool = False
) -> CertificateFiles | None:
    """The files that the setting names; None if it is empty. Raises SettingsError."""
    directory: str = getattr(settings, setting)
    if not directory:
        return None
    # cryptography: 8 MB that a replica without TLS does not need.
    from common.certificates import CertificateFiles  # noqa: PLC0415

    try:
        return CertificateFiles(Path(directory), port, mutual=mutual)
    except UnusableCertificate as error:
        raise SettingsError(f"{source_of(settings.service, setting)}: {error}") from None


def connections_max(settings: ServiceSettings) -> int:
    """How many connections each port for clients accepts: the process may have too few files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return settings.max_connections
    # gRPC limits the connections of each port, the operating system the files of the process.
    left = files - OWN_FILES - (PROBE_CONNECTIONS_MAX if settings.probe_bind else 0)
    ports = 2 if settings.peer_bind else 1
    return max(1, min(settings.max_connections, left // ports))


def listen_problem(address: str) -> str:
    """Why a server cannot listen on the address, found by trying, or '': gRPC gives no reason.

    Of a name's addresses, all that this machine has must be free.
    """
    host, port = split_host_port(address)
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        return _text(error)
    elsewhere, free = "", False
    for family, kind, protocol, _, socket_address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # As gRPC does: lingering connections of a predecessor do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(socket_address)
                probe.listen()
            free = True
        except OSError as error:
            if error.errno not in _ADDRESS_NOT_HERE:
                return _text(error)
            elsewhere = elsewhere or _text(error)
    return "" if free else elsewhere


def _text(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _options(settings: ServiceSettings, connections: int) -> list[tuple[str, int]]:
    age_grace_s = max(AGE_GRACE_S, settings.default_deadline_s)
    return [
        # A second server on the same port would otherwise bind silently and get half of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
        # Above its limit of calls that wait to be picked up, gRPC drops calls with a bare
        # CANCELLED. The handlers refuse with OVERLOADED and a delay instead.
        ("grpc.server.max_pending_requests", PENDING_MAX),
        ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_MAX),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES_MAX),
        ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", round(age_grace_s * 1000)),
        # A handler sees a call when its message is complete. This limits the calls before that,
        # and the memory of their messages; clients keep further calls waiting.
        (
            "grpc.max_concurrent_streams",
            max(STREAMS_LEAST, STREAMS_PER_SLOT * settings.max_concurrent_calls),
        ),
        # It would count calls that have ended and are not freed yet, and refuse clients that keep
        # to the limit with a bare UNAVAILABLE.
        ("grpc.http.overload_protection", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", CLIENT_PING_LEAST_MS),
    ]
