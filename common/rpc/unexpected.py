"""What a client gets for an exception that no code expected: INTERNAL, and an id for the log."""

from __future__ import annotations

import uuid

import structlog

from common import metrics
from common.errors import Internal

_log = structlog.stdlib.get_logger()


def internal(method: str, error: BaseException) -> Internal:
    """Log and count the error. The refusal has the log line's error_id and nothing of the error."""
    error_id = uuid.uuid4().hex
    metrics.UNEXPECTED.labels(method).inc()
    _log.error("unexpected error", method=method, error_id=error_id, exc_info=error)
    return Internal(error_id=error_id)
