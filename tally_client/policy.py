"""Which calls are retried, and when: by the channel, as published, and by this package above it.

The channel retries UNAVAILABLE where the method's idempotency_level allows it. This package retries
only what a channel cannot recognise: a refusal with RetryInfo, before which nothing was done, and
an idempotent call that a stopping server reset. No failure is retried by both.
"""

from __future__ import annotations

import json
import random
from importlib import resources
from typing import Any, Final

import grpc

from tally_client.errors import NoAnswer, TallyError
from tally_client.refusals import TokenExpired
from tally_client.rpc import service_config

_PUBLISHED: Final[dict[str, Any]] = json.loads(
    resources.files("tally_client").joinpath("service_config.json").read_text(encoding="utf-8")
)

CHANNEL: Final = service_config.without_timeouts(_PUBLISHED)
"""The service config of the client's channels; deadlines are set call by call instead."""

TIMEOUTS_S: Final = service_config.timeouts_s(_PUBLISHED)
"""The default time limit in seconds of each unary method, by its path."""

RETRYABLE: Final = frozenset({grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED})
"""With RetryInfo, these codes mean that nothing was done, or that a call with this request_id is in
progress: any method may be sent again."""

RESET_ATTEMPTS_MAX: Final = 5
"""Attempts of a call that stopping servers reset; the channel makes as many after UNAVAILABLE."""

UNTIMED_REFUSALS_MAX: Final = 10
"""Consecutive refusals after which opening a stream without a time limit fails: its caller would
never learn of them. With OVERLOADED, about 15 seconds."""

_FIRST_PAUSE_S: Final = 0.05
_PAUSE_S_MAX: Final = 2.0
_DOUBLINGS_MAX: Final = 10
"""Enough to reach the maximum; 2 to the power of a large count overflows."""


def wait_s(error: TallyError, retries: int) -> float | None:
    """Seconds to wait before the call is sent again after ``retries`` retries; None: it is not.

    At least what the service asked for, plus a pause with jitter that grows with ``retries``, so
    that clients which were refused together do not return together.
    """
    if _was_reset(error):
        return _pause_s(retries) if retries < RESET_ATTEMPTS_MAX - 1 else None
    if error.retry_after_s is None or error.code not in RETRYABLE:
        return None
    return error.retry_after_s + _pause_s(retries)


def resume_s(error: TallyError, breaks: int) -> float | None:
    """Seconds to wait before a stream that broke is opened again; None: it is not.

    ``breaks``: how often it has broken since it last sent anything new. A proxy may report a dead
    replica as a bare INTERNAL (it resets the stream), which is NoAnswer.
    """
    # A stream ends with its token, and goes on with the next one.
    passing = isinstance(error, NoAnswer | TokenExpired)
    if passing or error.code is grpc.StatusCode.UNAVAILABLE:
        return (error.retry_after_s or 0.0) + _pause_s(breaks)
    return wait_s(error, breaks)


def _was_reset(error: TallyError) -> bool:
    """Whether an idempotent call ended as a stopping server ends calls that it has not read.

    gRPC's servers in Python and C++ reset them, which the client sees as a bare CANCELLED. The
    channel could retry that code too, but other servers use it for calls that they do not want.
    """
    cancelled = error.code is grpc.StatusCode.CANCELLED
    return cancelled and error.may_repeat and isinstance(error, NoAnswer)


def _pause_s(earlier: int) -> float:
    """A pause that doubles with the number of earlier ones, with jitter."""
    longest_s = min(_PAUSE_S_MAX, _FIRST_PAUSE_S * 2.0 ** min(earlier, _DOUBLINGS_MAX))
    return longest_s * random.uniform(0.5, 1.5)  # noqa: S311
