"""Calls of the payment gateway: counted, and logged unless they ended well."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from typing import Final, TypeVar

import structlog
from prometheus_client import Counter, Histogram

from common.metrics import LATENCY_BUCKETS_S, REGISTRY
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
_ENDED_WELL: Final[dict[str, tuple[type[object], ...]]] = {
    "confirm": (Confirmed,),
    "find": (Confirmed, Cancelled, PartlyCancelled, Declined, Unsupported, NotFound),
    "cancel": (Cancelled,),
}
_outcomes = Counter(
    "tally_gateway_outcomes",
    "Outcomes of calls to the payment gateway, by operation.",
    ("asked", "outcome"),
    registry=REGISTRY,
)
_seconds = Histogram(
    "tally_gateway_call_seconds",
    "Time of a call that was sent to the payment gateway, in seconds, with its wait for a slot.",
    ("asked",),
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
for _asked in _ENDED_WELL:
    for _outcome in OUTCOME_LABELS.values():
        _outcomes.labels(_asked, _outcome)  # exported as 0 from the start
_log = structlog.stdlib.get_logger()


async def counted(
    operation: str, confirmation: Confirmation, call: Awaitable[OutcomeT]
) -> OutcomeT:
    """The outcome of a call, counted, and logged unless it ended well."""
    begun_s = time.perf_counter()
    outcome = await call
    took_s = time.perf_counter() - begun_s
    if not isinstance(outcome, NotSent | Saturated):
        _seconds.labels(operation).observe(took_s)
    _outcomes.labels(operation, OUTCOME_LABELS[type(outcome)]).inc()
    needs_attention = _needs_attention(operation, confirmation, outcome)
    # While the circuit is open, each line would repeat that of its opening.
    unremarkable = isinstance(outcome, _ENDED_WELL[operation]) or (
        isinstance(outcome, NotSent) and outcome.circuit_open
    )
    if needs_attention or not unremarkable:
        event, level = "gateway_call", logging.WARNING
        if needs_attention:
            event, level = "gateway_needs_attention", logging.ERROR
        elif isinstance(outcome, Declined):
            level = logging.INFO  # the customer's matter
        _log.log(
            level,
            event,
            asked=operation,
            outcome=repr(outcome),
            http_status=outcome.http_status,
            ms=round(took_s * 1000, 1),
            payment_id=confirmation.payment.payment_id,
            payment_key=confirmation.payment.payment_key,
        )
    return outcome


def _needs_attention(operation: str, confirmation: Confirmation, outcome: GatewayOutcome) -> bool:
    """Whether it does not resolve itself."""
    confirmed = confirmation.payment.state is PaymentState.CONFIRMED
    return (
        isinstance(outcome, Mismatch | Rejected)
        or (operation == "cancel" and isinstance(outcome, NotFound))
        or (confirmed and isinstance(outcome, Declined | NotFound))
        or (not confirmed and isinstance(outcome, NotCancellable))
    )
