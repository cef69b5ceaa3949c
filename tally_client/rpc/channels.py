"""Channels to all replicas of a service: round robin over those whose health is SERVING."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Final, cast

import grpc

from tally_client.rpc import service_config
from tally_client.rpc.addresses import target
from tally_client.rpc.certificates import Certificates
from tally_client.rpc.rotation import RotatingChannel

METADATA_BYTES_MAX: Final = 16 * 1024
KEEPALIVE_MS: Final = 30_000
"""A server of Tally closes connections that ping more often."""
KEEPALIVE_TIMEOUT_MS: Final = 10_000

# No retryPolicy: a service repeats its own calls where its metrics count them.
_SERVICE_CONFIG: Final = service_config.balanced()


def open_channel(
    addresses: str,
    *,
    config: Mapping[str, object] = _SERVICE_CONFIG,
    certificates: Certificates | None = None,
) -> grpc.aio.Channel:
    """A channel to all replicas at ``addresses``. Open it in the running event loop.

    It connects at once, and again after failures. ``config`` is its service config; none is looked
    up in DNS. ``certificates``: for TLS, which they rotate without a failed call; None: plaintext.
    Raises ValueError as ``target`` does, and for certificates that cannot be used.
    """
    to = target(addresses)
    if certificates is None:
        return _open(to, config, None, None)
    if certificates.server_name is None and "," in to:
        # gRPC would look for all of them, as one name, in each certificate.
        raise ValueError("several addresses need certificates with a server_name")
    open_ = partial(_open, to, config, certificates.server_name)
    return cast(grpc.aio.Channel, RotatingChannel(open_, certificates))


def _open(
    to: str,
    config: Mapping[str, object],
    server_name: str | None,
    credentials: grpc.ChannelCredentials | None,
) -> grpc.aio.Channel:
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # A replica that is back gets calls within a second or two, not two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        # Channels of one process do not share connections: each has its own round robin.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    channel = (
        grpc.aio.insecure_channel(to, options)
        if credentials is None
        else grpc.aio.secure_channel(to, credentials, options)
    )
    channel.get_state(try_to_connect=True)
    return channel
