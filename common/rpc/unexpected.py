"""What a client gets for an exception: a refusal as it is, INTERNAL for one that is unexpected."""

from __future__ import annotations

import asyncio
import uuid
from typing import Final

import grpc
import structlog

from common import deadlines, metrics
from common.errors import Code, Internal, Refusal

CLOCK_SLACK_S: Final = 0.005
"""The event loop's clock has a resolution of a millisecond."""

_log = structlog.stdlib.get_logger()


def refusal_for(method: str, error: BaseException) -> Refusal | Code | None:
    """What the client of a call gets for the exception that ended it.

    A code if no client waits any more: gRPC has sent it. None if the status is sent already.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is None or task.cancelling():
            # The client hung up or its deadline passed, and gRPC cancelled the call's task.
            return Code.DEADLINE_EXCEEDED if deadlines.cut_off() else Code.CANCELLED
        # Something that the method awaited was cancelled, not the call. If this error passed, the
        # task would end without a status and the client would wait until its deadline.
    elif isinstance(error, TimeoutError):
        left_s = deadlines.remaining()
        if left_s is not None and left_s < CLOCK_SLACK_S:
            return deadlines.DeadlineExceeded()
    elif not isinstance(error, Exception) or isinstance(error, grpc.aio.AbortError):
        return None
    return internal(method, error)


def internal(method: str, error: BaseException) -> Internal:
    """Log and count the error. The refusal has the log line's error_id and nothing of the error."""
    error_id = uuid.uuid4().hex
    metrics.UNEXPECTED.labels(method).inc()
    _log.error("unexpected error", method=method, error_id=error_id, exc_info=error)
    return Internal(error_id=error_id)
