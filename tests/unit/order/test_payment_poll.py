"""Sagas that wait for a payment are woken when it is decided, and once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import pytest

from order_service.clients import Services
from order_service.errors import NotPaid
from order_service.model.saga import Saga
from order_service.saga import payment_poll
from order_service.saga.journal import SagaJournal
from order_service.saga.payment_poll import PaymentPoll, confirmation_of, is_decided
from order_service.saga.plan import PAY_ORDER
from order_service.store.saga_waiting import WaitingSagas
from tally.payment.v1.payment_pb2 import Payment
from tests.support.sagas import SAGA_ID, saga_of

CONFIRMED, DECLINED = Payment.STATE_CONFIRMED, Payment.STATE_DECLINED
CANCELLED, UNKNOWN = Payment.STATE_CANCELLED, Payment.STATE_UNKNOWN


class Waiting(SagaJournal):
    """The sagas that wait, and those that were woken."""

    def __init__(self, saga: Saga) -> None:
        self.saga = saga
        self.woken: list[str] = []

    async def read_waiting(self, *, after: str, size: int) -> WaitingSagas:
        return WaitingSagas([self.saga.copy()], "")

    async def wake(self, saga_ids: Collection[str]) -> int:
        self.woken += saga_ids
        return len(saga_ids)


async def test_a_saga_is_woken_once_however_often_it_waits_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saga = saga_of(PAY_ORDER)
    payments: dict[str, Any] = {confirmation_of(saga): Payment(state=UNKNOWN)}

    async def found(_services: Services, _request_ids: Collection[str]) -> dict[str, Any]:
        return payments

    monkeypatch.setattr(payment_poll, "get_payments", found)
    journal = Waiting(saga)
    poll = PaymentPoll(cast("Services", None), journal)
    await poll.poll()
    assert journal.woken == []
    payments[confirmation_of(saga)] = Payment(state=CONFIRMED)
    for _ in range(3):
        await poll.poll()
    assert journal.woken == [SAGA_ID]
    # The other direction is another decision.
    saga.turn_back(NotPaid())
    payments[confirmation_of(saga)] = Payment(state=CANCELLED)
    for _ in range(3):
        await poll.poll()
    assert journal.woken == [SAGA_ID] * 2


@pytest.mark.parametrize(
    ("state", "forward", "back"),
    [
        (None, False, True),
        (UNKNOWN, False, False),
        (CONFIRMED, True, False),
        (DECLINED, True, True),
        (CANCELLED, True, True),
    ],
)
def test_what_decides_depends_on_the_direction(
    state: Payment.State.ValueType | None, forward: bool, back: bool
) -> None:
    payment = None if state is None else Payment(state=state)
    saga = saga_of(PAY_ORDER)
    assert is_decided(saga, payment) is forward
    saga.turn_back(NotPaid())
    assert is_decided(saga, payment) is back
