"""Waits until servers answer."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.errors import RunnerError
from deploy.local.processes import HOST, POLL_S, Child

CALL_LIMIT_S: Final = 1.0
CHANNEL_OPTIONS: Final = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
]


def failed_start(child: Child, what: str) -> RunnerError:
    """The error for a child that did not start, with the end of its log."""
    return RunnerError(f"{child.name} {what}; {child.log_file} ends:\n{child.log_tail()}")


def wait_for_port(child: Child, port: int, *, limit_s: float) -> None:
    """Return when the port accepts connections. Raises RunnerError if the child ends first."""
    deadline = time.monotonic() + limit_s
    while child.exit_code() is None:
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, port), timeout=CALL_LIMIT_S).close()
            return
        if time.monotonic() > deadline:
            raise failed_start(child, f"does not listen after {limit_s:.0f} s")
        time.sleep(POLL_S)
    raise failed_start(child, f"ended at start with {child.exit_code()}")


def wait_until_serving(
    children: Mapping[str, Child], *, limit_s: float, on_ready: Callable[[str, Child], None]
) -> None:
    """Return when every server, by its address, reports SERVING."""
    deadline = time.monotonic() + limit_s
    with contextlib.ExitStack() as stack:
        stubs = {}
        for address in children:
            channel = stack.enter_context(grpc.insecure_channel(address, CHANNEL_OPTIONS))
            stubs[address] = health_pb2_grpc.HealthStub(channel)
        while stubs:
            for address, stub in list(stubs.items()):
                child = children[address]
                if child.exit_code() is not None:
                    raise failed_start(child, f"ended at start with {child.exit_code()}")
                if _is_serving(stub):
                    del stubs[address]
                    on_ready(address, child)
            if stubs and time.monotonic() > deadline:
                late = children[next(iter(stubs))]
                raise failed_start(late, f"is not ready after {limit_s:.0f} s")
            time.sleep(POLL_S)


def _is_serving(stub: health_pb2_grpc.HealthStub) -> bool:
    try:
        answer = stub.Check(  # type: ignore[attr-defined] # set at run time
            health_pb2.HealthCheckRequest(), timeout=CALL_LIMIT_S
        )
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
