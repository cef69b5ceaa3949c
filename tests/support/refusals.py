"""What a refused call must say, asserted in one line."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from common.errors import Refusal
from common.rpc.status import from_rpc_error


@dataclass
class Refused:
    """The refusal that a block ended with."""

    refusal: Refusal | None = None
    seen: list[Refusal] = field(default_factory=list)


@contextmanager
def refused(reason: str, *, field: str | None = None) -> Iterator[Refused]:
    """The block must end in a refusal for ``reason``, naming ``field`` if given."""
    told = Refused()
    try:
        yield told
    except grpc.aio.AioRpcError as error:
        told.refusal = from_rpc_error(error)
    except Refusal as error:
        told.refusal = error
    assert told.refusal is not None, f"expected {reason}, but the call succeeded"
    assert told.refusal.reason == reason, f"expected {reason}, got {told.refusal!r}"
    if field is not None:
        assert field in {violation.field for violation in told.refusal.fields}


async def outcome(call: Awaitable[Any]) -> Any:
    """The response of a call, or the reason for which it was refused ('' by the transport)."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason
