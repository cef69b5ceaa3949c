"""The gRPC service config for clients in any language, `protos/service_config.json`.

Built from service descriptors: a method's ``idempotency_level`` decides whether a channel retries
it, and its kind how long a call may take. Format: grpc.service_config.ServiceConfig of grpc-proto,
in proto3's JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodOptions
from google.protobuf.descriptor_pool import DescriptorPool

PUBLISHED: Final = Path(__file__).with_name("service_config.json")
OF_CLIENT: Final = PUBLISHED.parent.parent / "tally_client" / PUBLISHED.name
"""The same file in the package of the Python client."""

READ_S: Final = 5.0
"""Time limit of a method without side effects, all its attempts together."""
MUTATION_S: Final = 10.0
"""Time limit of any other method."""
GATEWAY_S: Final = 30.0
"""Time limit of a method that may wait for the payment gateway: an attempt has 20 s to reach it,
and its effects are reversed before a refusal is returned (`docs/settings.md`). The service
continues without the caller; a call with the same request_id returns the outcome."""

TIMEOUTS_S: Final = {
    "tally.order.v1.OrderService.PayOrder": GATEWAY_S,
    "tally.order.v1.OrderService.CancelOrder": GATEWAY_S,
    "tally.payment.v1.PaymentService.ConfirmPayment": GATEWAY_S,
    "tally.payment.v1.PaymentService.CancelPayment": GATEWAY_S,
}
"""Time limits that differ from those above, by the method's full name."""

_LOAD_BALANCING: Final = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
}
_RETRY_POLICY: Final = {
    # As many as gRPC allows: a second of waiting, or what the server asks for each time.
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    # The one code that means "no answer" rather than "refused". The call may have been carried
    # out, hence only methods whose idempotency_level allows a repetition have this policy.
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# A replica that is killed fails up to 1,024 calls at once; throttling must not take that for an
# outage. gRPC allows at most 1,000 tokens. After 500 failures without successes there is one retry
# for every ten calls that succeed.
_RETRY_THROTTLING: Final = {"maxTokens": 1000, "tokenRatio": 0.1}

_LEVELS: Final = MethodOptions.IdempotencyLevel


def services(files: FileDescriptorSet) -> list[ServiceDescriptor]:
    """The services in ``files``, in which each file comes after its imports."""
    pool = DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return [
        pool.FindServiceByName(f"{file.package}.{service.name}")
        for file in files.file
        for service in file.service
    ]


def text(services: Iterable[ServiceDescriptor]) -> str:
    """The content of the published file for these services."""
    return json.dumps(build(services), indent=2) + "\n"


def build(
    services: Iterable[ServiceDescriptor], *, timeouts_s: Mapping[str, float] = TIMEOUTS_S
) -> dict[str, Any]:
    """The service config for clients of these services.

    ``timeouts_s``: time limits that differ from those of the method's kind, by full name. Raises
    ValueError if one of them names no method.
    """
    methods = sorted(
        (method for service in services for method in service.methods),
        key=lambda method: method.full_name,
    )
    if unknown := timeouts_s.keys() - {method.full_name for method in methods}:
        raise ValueError(f"no such methods: {', '.join(sorted(unknown))}")
    # One entry for all methods with the same policy, in the order of their names.
    entries: dict[str, dict[str, Any]] = {}
    for method in methods:
        policy = _policy(method, timeouts_s.get(method.full_name))
        entry = entries.setdefault(json.dumps(policy), {"name": [], **policy})
        name = {"service": method.containing_service.full_name, "method": method.name}
        entry["name"].append(name)
    return {
        **_LOAD_BALANCING,
        "methodConfig": list(entries.values()),
        "retryThrottling": _RETRY_THROTTLING,
    }


def _policy(method: MethodDescriptor, timeout_s: float | None) -> dict[str, Any]:
    level = method.GetOptions().idempotency_level
    policy: dict[str, Any] = {}
    # A stream has no limit: its client decides how long to watch.
    if not method.server_streaming:
        default_s = READ_S if level == _LEVELS.NO_SIDE_EFFECTS else MUTATION_S
        policy["timeout"] = f"{timeout_s or default_s:g}s"
    if level != _LEVELS.IDEMPOTENCY_UNKNOWN:
        policy["retryPolicy"] = _RETRY_POLICY
    return policy
