"""Repeats a call that may end otherwise the next time, within the running call's deadline.

Waits grow exponentially with jitter, so that clients who failed together do not come back
together; a peer's own RetryInfo is the least wait.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, TypeVar

import stamina
import stamina.instrumentation
import structlog

from common import deadlines, metrics
from common.errors import Refusal
from common.rpc.status import is_retryable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ATTEMPTS_MAX: Final = 4
WAIT_FIRST_S: Final = 0.05
WAIT_MAX_S: Final = 2.0
# No deadline known: stop beginning new attempts after this.
TOTAL_S: Final = 30.0

T = TypeVar("T")
_log = structlog.get_logger(__name__)

# stamina would log each retry as a warning with the exception's text, and count it under labels
# of its own choosing; what a reader needs is told here.
stamina.instrumentation.set_on_retry_hooks(())


async def call_with_retries(
    operation: str,
    attempt: Callable[[], Awaitable[T]],
    *,
    attempts_max: int = ATTEMPTS_MAX,
    wait_first_s: float = WAIT_FIRST_S,
) -> T:
    """The result of ``attempt``, made again while it is refused in a way that may pass.

    Only for what is safe to repeat: reads, and mutations with a request_id. Raises the last
    refusal, at once if no wait fits into the deadline any more. ``operation`` is a label of the
    metrics, not to be made of ids.
    """
    left_s = deadlines.remaining()
    tries = 0

    def wait_s(error: Exception) -> bool | float:
        nonlocal tries
        tries += 1
        if not isinstance(error, Refusal) or not is_retryable(error) or tries >= attempts_max:
            return False
        wait = _wait_s(tries, wait_first_s, error.retry_after_s)
        left_s = deadlines.remaining()
        if left_s is not None and left_s <= wait:
            return False
        metrics.RETRIES.labels(operation, error.code.name).inc()
        _log.debug(
            "repeating", operation=operation, code=error.code.name, reason=error.reason, wait_s=wait
        )
        return wait

    caller = stamina.AsyncRetryingCaller(
        attempts=attempts_max, timeout=TOTAL_S if left_s is None else max(left_s, 0.001)
    )
    return await caller(wait_s, attempt)


def _wait_s(tries: int, first_s: float, retry_after_s: float | None) -> float:
    backoff_s = min(WAIT_MAX_S, first_s * 2.0 ** (tries - 1))
    jittered_s = backoff_s * random.uniform(0.5, 1.5)  # noqa: S311 - not for secrets
    return jittered_s if retry_after_s is None else retry_after_s + jittered_s
