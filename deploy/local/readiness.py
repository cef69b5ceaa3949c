"""Waits until servers answer."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

import grpc

from common.rpc.probe import status_of
from deploy.local.processes import HOST, POLL_S, Child

CALL_LIMIT_S: Final = 1.0


def wait_for_port(child: Child, port: int, *, limit_s: float) -> None:
    """Return when the port accepts connections. Raises RunnerError if the child ends first."""
    deadline = time.monotonic() + limit_s
    while child.exit_code() is None:
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, port), timeout=CALL_LIMIT_S).close()
            return
        if time.monotonic() > deadline:
            raise child.failure(f"does not listen after {limit_s:.0f} s")
        time.sleep(POLL_S)
    raise child.failure(f"ended at start with {child.exit_code()}")


def wait_until_serving(
    children: Mapping[str, Child], *, limit_s: float, on_ready: Callable[[str, Child], None]
) -> None:
    """Return when every server, by its address, reports SERVING."""
    deadline = time.monotonic() + limit_s
    waiting = dict(children)
    while waiting:
        for address, child in list(waiting.items()):
            if child.exit_code() is not None:
                raise child.failure(f"ended at start with {child.exit_code()}")
            with contextlib.suppress(grpc.RpcError):
                if status_of(address, limit_s=CALL_LIMIT_S) == "SERVING":
                    del waiting[address]
                    on_ready(address, child)
            if address in waiting and time.monotonic() > deadline:
                raise child.failure(f"is not ready after {limit_s:.0f} s")
        time.sleep(POLL_S)
