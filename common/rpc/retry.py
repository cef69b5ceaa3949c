"""Repeats a call that may succeed the next time, within the deadline of the running call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from common import deadlines, metrics
from common.backoff import Backoff
from common.errors import Refusal
from common.rpc.status import is_retryable

T = TypeVar("T")

ATTEMPTS_MAX: Final = 4
BACKOFF: Final = Backoff(0.05, 2.0, jitter=(0.5, 1.5))
TOTAL_S: Final = 30.0
"""Without a deadline, no attempt begins later than this."""

CODES: Final = (
    *("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL"),
    *("RESOURCE_EXHAUSTED", "UNAVAILABLE"),
)
"""Of refusals that are repeated: with RetryInfo, or without a reply."""

_log = structlog.stdlib.get_logger()


def count_from_zero(*operations: str) -> None:
    """Export the retries of these operations before the first one."""
    metrics.from_zero(metrics.RETRIES, operations, CODES)


async def call_with_retries(
    operation: str,
    call: Callable[[], Awaitable[T]],
    *,
    attempts_max: int = ATTEMPTS_MAX,
    backoff: Backoff = BACKOFF,
) -> T:
    """The result of ``call``, repeated after refusals that are retryable.

    Only for what is safe to repeat: reads, and mutations with a request_id. The pause before an
    attempt is the backoff plus the refusal's own RetryInfo. Raises the last refusal; at once, if
    the next pause does not end before the deadline. ``operation`` is a label of the metrics, so it
    must not contain ids.
    """
    give_up_at = _give_up_at()
    for attempt in range(1, attempts_max):
        try:
            return await call()
        except Refusal as refusal:
            pause_s = _pause_s(refusal, operation, backoff.pause_s(attempt), give_up_at)
        await asyncio.sleep(pause_s)
    return await call()


async def pause_after(refusal: Refusal, operation: str) -> None:
    """Pause as ``call_with_retries`` does after the first attempt, which got this refusal.

    Raises it if the call is not to be repeated, or not before the deadline.
    """
    await asyncio.sleep(_pause_s(refusal, operation, BACKOFF.pause_s(1), _give_up_at()))


def _give_up_at() -> float:
    left_s = deadlines.remaining()
    return time.monotonic() + (TOTAL_S if left_s is None else left_s)


def _pause_s(refusal: Refusal, operation: str, backoff_s: float, give_up_at: float) -> float:
    """The pause before the next attempt. Raises the refusal if there is to be none."""
    pause_s = backoff_s + (refusal.retry_after_s or 0.0)
    if not is_retryable(refusal) or time.monotonic() + pause_s >= give_up_at:
        raise refusal
    code, reason = refusal.code.name, refusal.reason
    metrics.RETRIES.labels(operation, code).inc()
    _log.debug("repeating", operation=operation, code=code, reason=reason, wait_s=pause_s)
    return pause_s
