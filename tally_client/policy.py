"""What is done by itself: by the channel, as published, and by this package on top of it.

The channel repeats what was UNAVAILABLE, where the contract says that it is safe. Here only that
is repeated which a channel cannot know of: a refusal that says when to come again (RetryInfo), for
which nothing was done; and a safe call that a stopping server cut off. Nothing is repeated by
both.
"""

from __future__ import annotations

import json
import random
from importlib import resources
from typing import Any, Final

import grpc

from common.rpc import service_config
from tally_client.errors import NoAnswer, TallyError

_PUBLISHED: Final[dict[str, Any]] = json.loads(
    resources.files("protos").joinpath("service_config.json").read_text(encoding="utf-8")
)

CHANNEL: Final = service_config.without_timeouts(_PUBLISHED)
"""The service config of our channels; time limits are set here, call by call."""

TIMEOUTS_S: Final = service_config.timeouts_s(_PUBLISHED)
"""The default time limit of each unary method, by its path."""

REPEATED: Final = frozenset({grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED})
"""With RetryInfo, these say that nothing was done, or that it is under way under this request_id:
any method may be sent again."""

UNTIMED_REFUSALS_MAX: Final = 10
"""Refusals in a row after which a stream without a time limit is no longer asked for: its caller
would never hear of them. A quarter of a minute, if OVERLOADED."""
_WAIT_FIRST_S: Final = 0.05
_WAIT_MAX_S: Final = 2.0
# Beyond it the power of two would at some time be no float any more.
_DOUBLINGS_MAX: Final = 16


def wait_s(error: TallyError, repetitions: int) -> float | None:
    """How long to wait before the call is sent again; None if it is not.

    At least what the service asked for, and on top of it a wait that grows with ``repetitions``
    and differs from client to client, so that those who were refused together do not come back
    together.
    """
    if _cut_off(error):
        return _growing_s(repetitions) if repetitions < service_config.ATTEMPTS_MAX - 1 else None
    if error.retry_after_s is None or error.code not in REPEATED:
        return None
    return error.retry_after_s + _growing_s(repetitions)


def resume_s(error: TallyError, breaks: int) -> float | None:
    """How long to wait before a stream that broke is taken up again; None if it is not.

    ``breaks``: how often it broke before without having brought anything new. A proxy in between
    may tell of a dead replica by a bare INTERNAL (it resets the stream), which is NoAnswer.
    """
    if error.code is grpc.StatusCode.UNAVAILABLE or isinstance(error, NoAnswer):
        return (error.retry_after_s or 0.0) + _growing_s(breaks)
    return wait_s(error, breaks)


def _cut_off(error: TallyError) -> bool:
    """Whether a call that is safe to repeat ended as those do that a stopping server never read.

    gRPC's servers in Python and C++ reset such calls, which clients are told as a bare CANCELLED.
    Channels could repeat that too, but it is also what others use for calls that are not wanted.
    """
    cancelled = error.code is grpc.StatusCode.CANCELLED
    return cancelled and error.may_repeat and isinstance(error, NoAnswer)


def _growing_s(times: int) -> float:
    wait_s = min(_WAIT_MAX_S, _WAIT_FIRST_S * 2.0 ** min(times, _DOUBLINGS_MAX))
    return wait_s * random.uniform(0.5, 1.5)  # noqa: S311 - not for secrets
