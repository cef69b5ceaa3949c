"""``python -m common.rpc.probe HOST:PORT [SERVICE]``: a replica's health, for scripts and Compose.

SERVICE is ``""`` (readiness), the default, or ``liveness``. Prints the status. The exit code is 0
for SERVING, 1 for any other status or no reply within two seconds, 2 for wrong arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tally_client.rpc.addresses import split_host_port

LIMIT_S: Final = 2.0

_Status: Final = health_pb2.HealthCheckResponse.ServingStatus


def status_of(address: str, service: str = "", limit_s: float = LIMIT_S) -> str:
    """The health of ``service`` at ``host:port``, by its name in the protocol, such as ``SERVING``.

    Raises grpc.RpcError if there is no status within ``limit_s`` seconds, and ValueError for an
    address of another form.
    """
    split_host_port(address)
    # Never through a proxy of the environment: this is about the address itself.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=limit_s)
    return str(_Status.Name(response.status))


def main(arguments: Sequence[str]) -> int:
    """Print the status; return the exit code."""
    if len(arguments) not in (1, 2):
        sys.stderr.write("usage: python -m common.rpc.probe HOST:PORT [SERVICE]\n")
        return 2
    try:
        status = status_of(arguments[0], "".join(arguments[1:]))
    except ValueError as error:
        sys.stderr.write(f"{arguments[0]}: {error}\n")
        return 2
    except grpc.RpcError as error:
        sys.stderr.write(f"{arguments[0]}: {error.code().name}\n")
        return 1
    sys.stdout.write(f"{status}\n")
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
