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

_log = structlog.stdlib.get_logger()


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
    left_s = deadlines.remaining()
    give_up_at = time.monotonic() + (TOTAL_S if left_s is None else left_s)
    for attempt in range(1, attempts_max):
        try:
            return await call()
        except Refusal as refusal:
            pause_s = backoff.pause_s(attempt) + (refusal.retry_after_s or 0.0)
            if not is_retryable(refusal) or time.monotonic() + pause_s >= give_up_at:
                raise
            code, reason = refusal.code.name, refusal.reason
            metrics.RETRIES.labels(operation, code).inc()
            _log.debug("repeating", operation=operation, code=code, reason=reason, wait_s=pause_s)
        await asyncio.sleep(pause_s)
    return await call()
