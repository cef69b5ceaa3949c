"""What refused calls return, asserted in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import grpc
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from common.errors import Code, Refusal
from common.rpc.status import from_rpc_error, from_status

_TRIES_MAX: Final = 100


@dataclass
class Refused:
    """The refusal that a block ended with; it is there when the block has ended."""

    refusal: Refusal = field(init=False)


@contextmanager
def refused(reason: str, *, field: str | None = None) -> Iterator[Refused]:
    """The block must end in a refusal for ``reason``, naming ``field`` if given."""
    ended = Refused()
    try:
        yield ended
    except grpc.aio.AioRpcError as error:
        ended.refusal = from_rpc_error(error)
    except Refusal as error:
        ended.refusal = error
    else:
        raise AssertionError(f"expected {reason}, but the call succeeded")
    assert ended.refusal.reason == reason, f"expected {reason}, got {ended.refusal!r}"
    if field is not None:
        assert field in {violation.field for violation in ended.refusal.fields}


def reason_of(error: Status) -> str:
    """The reason in a bulk item's error; '' if it has none."""
    return from_status(error, Code.UNKNOWN).reason


async def outcome(call: Awaitable[Any]) -> Any:
    """The response of a call, or the reason for which it was refused ('' by the transport)."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason


async def final_outcome(call: Callable[[], Awaitable[Any]]) -> Any:
    """The outcome of a call that is made again while conflicts keep it from being decided."""
    for _ in range(_TRIES_MAX):
        result = await outcome(call())
        if result != "CONFLICT_RETRIES_EXHAUSTED":
            return result
    raise AssertionError("no final outcome")


class Results(NamedTuple):
    """The outcomes of several calls."""

    responses: list[Any]
    refusals: Counter[str]
    """The reasons, counted."""

    @classmethod
    def of(cls, outcomes: Iterable[Any]) -> Results:
        outcomes = list(outcomes)
        return cls(
            [each for each in outcomes if not isinstance(each, str)],
            Counter(each for each in outcomes if isinstance(each, str)),
        )
