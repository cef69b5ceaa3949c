"""Calls of the payment gateway: counted, and logged if they need an operator."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import structlog
from prometheus_client import Counter

from common.metrics import REGISTRY
from payment_service.gateway.outcomes import (
    Cancelled,
    Confirmed,
    Declined,
    GatewayOutcome,
    Mismatch,
    NotCancellable,
    NotFound,
    NotSent,
    PartlyCancelled,
    Rejected,
    Saturated,
    Unknown,
    Unsupported,
)
from payment_service.model.confirmation import Confirmation
from payment_service.model.payment import PaymentState

OutcomeT = TypeVar("OutcomeT", bound=GatewayOutcome)

OUTCOME_LABELS: Final[dict[type[object], str]] = {
    Confirmed: "Confirmed",
    Cancelled: "Cancelled",
    PartlyCancelled: "PartlyCancelled",
    Declined: "Declined",
    Unsupported: "Unsupported",
    NotFound: "NotFound",
    NotCancellable: "NotCancellable",
    NotSent: "NotSent",
    Saturated: "Saturated",
    Rejected: "Rejected",
    Unknown: "Unknown",
    Mismatch: "Mismatch",
}
"""Values of the metric's label, which dashboards and alerts use."""
_outcomes = Counter(
    "tally_gateway_outcomes",
    "Outcomes of calls to the payment gateway, by operation.",
    ("asked", "outcome"),
    registry=REGISTRY,
)
_log = structlog.stdlib.get_logger()


async def counted(
    operation: str, confirmation: Confirmation, call: Awaitable[OutcomeT]
) -> OutcomeT:
    """The outcome of a call, counted; logged if it needs an operator."""
    outcome = await call
    _outcomes.labels(operation, OUTCOME_LABELS[type(outcome)]).inc()
    confirmed = confirmation.payment.state is PaymentState.CONFIRMED
    if (
        isinstance(outcome, Mismatch | Rejected)
        or (operation == "cancel" and isinstance(outcome, NotFound))
        or (confirmed and isinstance(outcome, Declined | NotFound))
        or (not confirmed and isinstance(outcome, NotCancellable))
    ):
        # None of these resolves itself.
        _log.error(
            "gateway_needs_attention",
            asked=operation,
            outcome=repr(outcome),
            payment_id=confirmation.payment.payment_id,
        )
    return outcome
