"""Channels to all replicas of a service, in turns; those whose health says NOT_SERVING get none.

For the services' own calls (``common.rpc.client``) and for clients alike.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import grpc

from common.addresses import target
from common.rpc import service_config

if TYPE_CHECKING:
    from collections.abc import Mapping

METADATA_BYTES_MAX: Final = 16 * 1024
# More often than this and the peer's server would close the connection (common.rpc.server).
KEEPALIVE_MS: Final = 30_000
KEEPALIVE_TIMEOUT_MS: Final = 10_000

# No retryPolicy: the callers of services repeat calls themselves (common.rpc.retry), where a saga's
# journal and the metrics can count them.
_SERVICE_CONFIG: Final = service_config.balanced()


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
