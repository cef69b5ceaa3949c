"""The gRPC service config: what a channel does by itself, in any language, as published JSON.

Built from service descriptors: a method's ``idempotency_level`` says whether a channel may repeat
it, and its kind how long it may take. Format: grpc.service_config.ServiceConfig of
grpc-proto, in proto3's JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

READ_S: Final = 5.0
"""Time limit of a method without side effects, all its attempts together."""
MUTATION_S: Final = 10.0
"""Time limit of any other method."""

ATTEMPTS_MAX: Final = 5
"""As many as gRPC allows: a second of waiting, or what the server asks for each time."""
_RETRY_POLICY: Final = {
    "maxAttempts": ATTEMPTS_MAX,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    # The one code that says "not answered" and not "answered no". What it may have cost is what
    # idempotency_level is asked about.
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# A replica serves up to 1,024 calls at once and fails them all when it is killed: that must not
# pass for an outage, which this is to find. gRPC allows no more tokens than a thousand. After 500
# failures without successes there is one retry for every ten calls that succeed.
_RETRY_THROTTLING: Final = {"maxTokens": 1000, "tokenRatio": 0.1}

_LEVELS: Final = MethodOptions.IdempotencyLevel


def balanced() -> dict[str, Any]:
    """Turns among all replicas, passing over those whose health says NOT_SERVING; nothing else."""
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }


def build(
    services: Iterable[ServiceDescriptor], *, timeouts_s: Mapping[str, float]
) -> dict[str, Any]:
    """The service config for clients of these services.

    ``timeouts_s``: time limits of methods, by full name, that differ from those of their kind.
    Raises ValueError if one of them names no method.
    """
    methods = sorted(
        (method for service in services for method in service.methods),
        key=lambda method: method.full_name,
    )
    if unknown := timeouts_s.keys() - {method.full_name for method in methods}:
        raise ValueError(f"no such methods: {', '.join(sorted(unknown))}")
    # One entry for all methods of one policy, in the order of their names.
    entries: dict[str, dict[str, Any]] = {}
    for method in methods:
        policy = _policy(method, timeouts_s.get(method.full_name))
        entry = entries.setdefault(json.dumps(policy), {"name": [], **policy})
        name = {"service": method.containing_service.full_name, "method": method.name}
        entry["name"].append(name)
    return {
        **balanced(),
        "methodConfig": list(entries.values()),
        "retryThrottling": _RETRY_THROTTLING,
    }


def is_idempotent(method: MethodDescriptor) -> bool:
    """Whether sending a call again, whose answer was lost, cannot have another effect."""
    level = method.GetOptions().idempotency_level
    return level in {_LEVELS.NO_SIDE_EFFECTS, _LEVELS.IDEMPOTENT}


def timeouts_s(config: Mapping[str, Any]) -> dict[str, float]:
    """The time limits in a config, by the method's path (``/package.Service/Method``)."""
    return {
        f"/{name['service']}/{name['method']}": float(entry["timeout"].removesuffix("s"))
        for entry in config["methodConfig"]
        if "timeout" in entry
        for name in entry["name"]
    }


def without_timeouts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config for a client on gRPC's C core, Python's among them, which sets its own limits.

    The C core lets a config's limit end more than a second early and does not tell the server of
    it (grpc#40633); and in every language a call could not ask for longer.
    """
    methods = [
        {key: value for key, value in entry.items() if key != "timeout"}
        for entry in config["methodConfig"]
    ]
    return {**config, "methodConfig": methods}


def _policy(method: MethodDescriptor, timeout_s: float | None) -> dict[str, Any]:
    policy: dict[str, Any] = {}
    # A stream is watched for as long as its client likes.
    if not method.server_streaming:
        reads = method.GetOptions().idempotency_level == _LEVELS.NO_SIDE_EFFECTS
        policy["timeout"] = f"{timeout_s or (READ_S if reads else MUTATION_S):g}s"
    if is_idempotent(method):
        policy["retryPolicy"] = _RETRY_POLICY
    return policy
