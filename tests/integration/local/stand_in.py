"""A stand-in for a service in tests of the runner: migrates, serves health, ends on SIGTERM.

Its other calls wait until it ends. With a file `fail` in its package it ends at start, with a file
`linger` it is never ready.
"""

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

PACKAGE = Path(__file__).parent
PREFIX = f"TALLY_{PACKAGE.name.removesuffix('_service').upper()}_"


class EveryOtherCall(grpc.GenericRpcHandler):
    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return grpc.unary_unary_rpc_method_handler(self._wait)

    def _wait(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self._stopped.wait()
        return b""


def main() -> None:
    if sys.argv[1:] == ["migrate"]:
        sys.exit(0 if os.environ[f"{PREFIX}OWNER_DATABASE_URL"] else 1)
    if (PACKAGE / "fail").exists():
        sys.exit("no cheese in stock")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    servicer = health.HealthServicer()
    if (PACKAGE / "linger").exists():
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers((EveryOtherCall(stopped),))
    server.add_insecure_port(os.environ[f"{PREFIX}BIND"])
    server.start()
    print(sorted(name for name in os.environ if name.startswith("TALLY_")), flush=True)
    stopped.wait()
    server.stop(0).wait()


if __name__ == "__main__":
    main()
