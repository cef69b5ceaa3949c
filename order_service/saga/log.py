"""The log lines of sagas: what failed, when it is tried again, and when a person should look."""

from __future__ import annotations

import logging
from datetime import datetime

import structlog

from common.errors import Refusal
from order_service.clients import StepEffect, effect_of
from order_service.model.saga import Saga, StepRecord, StepState, describe

_log = structlog.stdlib.get_logger()


def log_of(saga: Saga) -> structlog.stdlib.BoundLogger:
    """A log whose events name the saga. Bound only when there is an event: most sagas have none."""
    log: structlog.stdlib.BoundLogger = _log.bind(
        saga_id=saga.saga_id, order_id=saga.order_id, user_id=saga.user_id, epoch=saga.epoch
    )
    return log


def log_failed_call(
    saga: Saga,
    record: StepRecord,
    reply: Refusal,
    *,
    direction: str = "do",
    next_attempt: datetime | None = None,
) -> None:
    """Log a call of a step, or of its undo, that did not succeed. None: it is not called again."""
    refused = next_attempt is None and effect_of(reply) is StepEffect.REFUSED
    log_of(saga).log(
        # A refusal is the customer's matter: too little money, a declined card.
        logging.INFO if refused else logging.WARNING,
        "saga_step_failed",
        step=record.name,
        direction=direction,
        # An undo's attempts follow those of its step.
        attempt=record.failures if direction == "undo" else record.attempts,
        reason=describe(reply),
        next_attempt=next_attempt and next_attempt.isoformat(timespec="milliseconds"),
    )


def log_not_paid(saga: Saga, failure: Refusal) -> None:
    """Log that a payment ends although no service refused it."""
    log_of(saga).warning("saga_not_paid", reason=describe(failure), **failure.metadata)


def log_attention(saga: Saga, error: str) -> None:
    """Log that a person should look at the saga: where it stands, and what is undone already."""
    failing = [step.name for step in saga.steps if step.failures]
    undone = [step.name for step in saga.steps if step.state is StepState.COMPENSATED]
    log_of(saga).error(
        "saga_needs_attention",
        kind=saga.kind.value,
        steps=failing,
        error=error,
        undone=undone,
    )
