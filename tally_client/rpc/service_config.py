"""The gRPC service config at run time: load balancing, and what the published config states.

The published config is `protos/service_config.json`; `tally_client/service_config.json` is the
same. Format: grpc.service_config.ServiceConfig of grpc-proto, in proto3's JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions


def balanced() -> dict[str, Any]:
    """Round robin over all replicas, without those whose health is NOT_SERVING; nothing else."""
    return {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}


def is_idempotent(method: MethodDescriptor) -> bool:
    """Whether a call can be sent again after a lost answer without a second effect."""
    level = method.GetOptions().idempotency_level
    return level != MethodOptions.IdempotencyLevel.IDEMPOTENCY_UNKNOWN


def timeouts_s(config: Mapping[str, Any]) -> dict[str, float]:
    """The time limits in a config, by the method's path (``/package.Service/Method``)."""
    return {
        f"/{name['service']}/{name['method']}": float(entry["timeout"].removesuffix("s"))
        for entry in config["methodConfig"]
        if "timeout" in entry
        for name in entry["name"]
    }


def without_timeouts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without time limits, for a client on gRPC's C core, which sets deadlines itself.

    The C core ends a config's limit more than a second early and does not send it to the server
    (grpc#40633); and in no language can a call ask for more than the config's limit.
    """
    methods = [
        {key: value for key, value in entry.items() if key != "timeout"}
        for entry in config["methodConfig"]
    ]
    return {**config, "methodConfig": methods}
