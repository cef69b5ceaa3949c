"""One call to a service, and what its caller knows afterwards."""

from __future__ import annotations

import time
from typing import Any

import grpc

from common.rpc.status import from_rpc_error
from tests.chaos.history import Call, Outcome, name_of, outcome_of


async def call_once(method: Any, request: Any, deadline_s: float, *, changed: bool = False) -> Call:
    """Make one call; ``changed``: with another body than the calls before."""
    start_s = time.monotonic()
    try:
        response = await method(request, timeout=deadline_s)
    except grpc.aio.AioRpcError as error:
        refusal = from_rpc_error(error)
        outcome = outcome_of(refusal, name_of(method))
        return Call(start_s, time.monotonic(), outcome, refusal=refusal, changed=changed)
    return Call(start_s, time.monotonic(), Outcome.OK, response, changed=changed)
