"""Channels to other services: one per peer for the life of the process, spread over its replicas.

Every replica of a peer gets its turn (round robin); one whose health says NOT_SERVING gets none.
"""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import grpc

from common import deadlines, retry, service_config, tracing
from common.pipeline import LEAST_S
from common.settings import split_host_port
from common.status import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

METADATA_BYTES_MAX: Final = 16 * 1024
# More often than this and the peer's server would close the connection (common.server).
KEEPALIVE_MS: Final = 30_000
KEEPALIVE_TIMEOUT_MS: Final = 10_000

# No retryPolicy: the callers of services repeat calls themselves (common.retry), where a saga's
# journal and the metrics can count them.
_SERVICE_CONFIG: Final = service_config.balanced()

Stub = TypeVar("Stub")
Request = TypeVar("Request")
Response = TypeVar("Response")


def target(addresses: str) -> str:
    """The gRPC target of ``host:port``, of several numeric ``ip:port`` with commas, or of a URI.

    Raises ValueError for several names: gRPC resolves one name, to as many addresses as it has
    (``dns:///balance:50051``), or takes several numeric addresses.
    """
    if "://" in addresses or addresses.startswith(("dns:", "ipv4:", "ipv6:", "unix:")):
        return addresses
    listed = [address.strip() for address in addresses.split(",") if address.strip()]
    if not listed:
        raise ValueError("must name at least one host:port")
    hosts = [split_host_port(address)[0].strip("[]") for address in listed]
    if len(listed) == 1 and _version(hosts[0]) is None:
        return f"dns:///{listed[0]}"
    listed = [
        address.replace("localhost", "127.0.0.1", 1) if host == "localhost" else address
        for address, host in zip(listed, hosts, strict=True)
    ]
    versions = {4 if host == "localhost" else _version(host) for host in hosts}
    if versions == {4}:
        return "ipv4:" + ",".join(listed)
    if versions == {6}:
        return "ipv6:" + ",".join(listed)
    raise ValueError("must be one name, or numeric addresses of one family")


def _version(host: str) -> int | None:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None


def open_channel(
    addresses: str, *, config: Mapping[str, Any] = _SERVICE_CONFIG
) -> grpc.aio.Channel:
    """A channel to all replicas at ``addresses``; to be opened in the running event loop.

    It connects by itself, now and again after failures. ``config`` is its service config; none is
    asked for in DNS. Raises ValueError as ``target`` does.
    """
    channel = grpc.aio.insecure_channel(
        target(addresses),
        options=[
            ("grpc.service_config", json.dumps(config)),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_metadata_size", METADATA_BYTES_MAX),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            # A replica that comes back is to be found within a second or two, not two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.dns_min_time_between_resolutions_ms", 5_000),
            # Channels of one process do not share connections: each has its own turns.
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )
    channel.get_state(try_to_connect=True)
    return channel


class Peer(Generic[Stub]):
    """Another service: its stub, with deadlines and traces carried on and errors as refusals.

    >>> async with Peer(open_channel(addresses), BalanceServiceStub) as balance:
    ...     await balance.call(balance.stub.DeductBalance, request, limit_s=2.0)
    """

    def __init__(self, channel: grpc.aio.Channel, stub_type: Callable[[Any], Stub]) -> None:
        self.stub = stub_type(tracing.calling(channel))
        self._channel = channel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel; calls still running on it are cancelled."""
        await self._channel.close()

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        limit_s: float,
        repeat: bool = True,
        attempts_max: int = retry.ATTEMPTS_MAX,
    ) -> Response:
        """The response to one unary call, each attempt within ``limit_s`` and the deadline.

        With ``repeat``, a refusal that may pass is met with further attempts; right for reads and
        for mutations with a request_id. Raises RemoteRefusal with what the peer said, or with an
        empty reason if it said nothing; DeadlineTooShort if no time is left to begin.
        """

        async def attempt() -> Response:
            timeout_s = deadlines.timeout_for(limit_s, least_s=LEAST_S)
            try:
                return await method(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None

        if not repeat:
            return await attempt()
        return await retry.repeated(type(request).__name__, attempt, attempts_max=attempts_max)
