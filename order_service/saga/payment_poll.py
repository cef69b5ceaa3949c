"""Wakes the sagas whose payments have been decided at the gateway.

The payment service resolves an unknown payment itself. Its sagas wait in their rows meanwhile; one
call asks for many of them, so that none waits for its next attempt when its payment is decided.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from order_service.clients import Services, get_payments
from order_service.model.saga import Saga, StepRecord
from order_service.saga.journal import SagaJournal
from order_service.saga.plan import PAYMENT, plan_of
from tally.payment.v1.payment_pb2 import Payment

POLL_S: Final = 1.0
SIZE: Final = 500
"""Payments asked for in one call: the limit of GetConfirmations."""
WOKEN_MAX: Final = 10_000
_OPEN: Final = frozenset({Payment.STATE_PENDING, Payment.STATE_UNKNOWN})
_GIVEN_BACK: Final = frozenset({Payment.STATE_DECLINED, Payment.STATE_CANCELLED})


class PaymentPoll:
    """Asks for the payments that sagas wait for, some at a time."""

    def __init__(self, services: Services, journal: SagaJournal) -> None:
        self._services = services
        self._journal = journal
        self._after = ""
        self._woken: deque[tuple[str, bool]] = deque(maxlen=WOKEN_MAX)
        """Sagas woken last, by id and direction: one that then fails for another reason waits for
        its own time."""

    async def poll(self) -> int:
        """Wake the sagas whose payments are decided; returns how many.

        Raises what the payment service refuses; each saga tries again by itself.
        """
        waiting = await self._journal.read_waiting(after=self._after, size=SIZE)
        self._after = waiting.after
        known = set(self._woken)
        sagas = {
            confirmation_of(saga): saga
            for saga in waiting.sagas
            if (saga.saga_id, saga.gives_back) not in known
            and plan_of(saga) is not None
            and payment_step(saga)
        }
        if not sagas:
            return 0
        payments = await get_payments(self._services, list(sagas))
        decided = [
            saga for request_id, saga in sagas.items() if is_decided(saga, payments.get(request_id))
        ]
        woken = await self._journal.wake([saga.saga_id for saga in decided])
        self._woken.extend((saga.saga_id, saga.gives_back) for saga in decided)
        return woken


def payment_step(saga: Saga) -> StepRecord | None:
    """The step that charges or refunds the payment."""
    return next((step for step in saga.steps if step.participant == PAYMENT.name), None)


def confirmation_of(saga: Saga) -> str:
    """The request_id of the confirmation that the saga makes or undoes."""
    step = payment_step(saga)
    assert step is not None, "only a saga with a payment waits for one"
    return step.undoes or step.request_id


def is_decided(saga: Saga, payment: Payment | None) -> bool:
    """Whether the payment's state lets the saga go on."""
    if saga.gives_back:
        return payment is None or payment.state in _GIVEN_BACK
    return payment is not None and payment.state not in _OPEN
