"""Waits until servers answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Final

import grpc

from common.rpc.probe import status_of
from deploy.local.processes import POLL_S, Child

CALL_LIMIT_S: Final = 1.0


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
