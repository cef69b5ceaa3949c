"""Sagas that a person closed: what is undone and fenced before the order is free, and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from order_service.errors import PaymentOutcomeUnknown
from order_service.model.saga import LIVE, Saga, SagaState, StepState
from order_service.saga.plan import CANCEL_ORDER, PAY_ORDER, UNDO_ONLY_VERSION, Plan
from tests.support.sagas import LOST, PAY_SAGA_ID, REFUND_REFUSED, SAGA_ID, SagaRun, saga_of

BEGUN, DONE, UNKNOWN, STANDING = (
    StepState.BEGUN,
    StepState.DONE,
    StepState.UNKNOWN,
    StepState.STANDING,
)
COMPENSATED, PENDING = StepState.COMPENSATED, StepState.PENDING
PAY_STEPS = [step.name for step in PAY_ORDER.steps]


def resolved(plan: Plan, states: Sequence[StepState], **fields: Any) -> SagaRun:
    """A saga that needed attention with its steps in these states, closed by a person."""
    saga = saga_of(plan, state=SagaState.NEEDS_ATTENTION, **fields)
    for step, state in zip(saga.steps, states, strict=False):
        step.state = state
    run = SagaRun(saga)
    run.services.effects = [step.request_id for step in saga.steps if step.state is DONE]
    run.row.resolve("nothing was charged", PaymentOutcomeUnknown())
    run.row.epoch += 1
    return run


def states_of(saga: Saga) -> list[StepState]:
    return [step.state for step in saga.steps if step.participant]


async def test_the_order_is_free_when_all_is_undone_or_certain_to_be() -> None:
    run = resolved(PAY_ORDER, [DONE, DONE, UNKNOWN])
    released: list[tuple[str, list[StepState], list[bool]]] = []
    close = run.journal.close

    async def closed(saga: Saga) -> object:
        order = await close(saga)
        row = run.row
        released.append((row.state, states_of(row), [step.fenced for step in row.steps]))
        return order

    run.journal.close = closed  # type: ignore[assignment]
    await run.go_on()
    fenced = [COMPENSATED, COMPENSATED, UNKNOWN], [False, False, True, False]
    undone = [COMPENSATED] * 3, [False, False, True, False]
    assert released == [("RESOLVING", *fenced), ("RESOLVED", *undone)]
    assert run.order == "PENDING"
    cancels = [r for r in run.services.requests if r.request_id.endswith("confirm_payment:undo")]
    assert [cancel.record_only for cancel in cancels] == [True, False]
    assert run.services.effects == []
    assert run.failure.reason == "PAYMENT_OUTCOME_UNKNOWN"


@pytest.mark.parametrize("step", PAY_STEPS)
async def test_the_order_is_not_free_while_a_service_is_away(step: str) -> None:
    run = resolved(PAY_ORDER, [DONE, DONE, UNKNOWN])
    run.services.errors = {f"{step}:undo": [LOST] * 100}
    await run.go_on()
    assert run.row.state in LIVE
    assert run.order == "PAYING"
    run.services.errors.clear()
    await run.go_on()
    assert (run.row.state, run.order) == (SagaState.RESOLVED, "PENDING")
    assert run.services.effects == []


async def test_a_refund_that_is_refused_keeps_the_saga_resolving_and_not_the_order() -> None:
    run = resolved(PAY_ORDER, [DONE, DONE, DONE])
    run.services.errors = {"confirm_payment:undo": [REFUND_REFUSED] * 100}
    await run.go_on()
    assert (run.row.state, run.order) == (SagaState.RESOLVING, "PENDING")
    assert (
        run.row.step("confirm_payment").last_error
        == "FAILED_PRECONDITION REFUND_REFUSED NOT_CANCELABLE_PAYMENT"
    )
    assert run.journal.notes == []
    run.services.errors.clear()
    await run.go_on()
    assert run.row.state is SagaState.RESOLVED


@pytest.mark.parametrize("standing", PAY_STEPS)
async def test_what_stands_is_not_undone(standing: str) -> None:
    states = [STANDING if step == standing else DONE for step in PAY_STEPS]
    run = resolved(PAY_ORDER, states)
    await run.go_on()
    assert (run.row.state, run.order) == (SagaState.RESOLVED, "PENDING")
    expected = [STANDING if step == standing else COMPENSATED for step in PAY_STEPS]
    assert states_of(run.row) == expected
    assert f"{standing}:undo" not in run.services.calls


async def test_a_resolved_cancellation_gives_back_all_but_what_stands() -> None:
    run = resolved(CANCEL_ORDER, [UNKNOWN, STANDING, PENDING])
    await run.go_on()
    assert (run.row.state, run.order) == (SagaState.RESOLVED, "CANCELLED")
    assert states_of(run.row) == [DONE, STANDING, DONE]
    assert run.services.cancelled == {
        f"{PAY_SAGA_ID}:confirm_payment",
        f"{PAY_SAGA_ID}:redeem_coupon",
    }


@pytest.mark.parametrize("plan", [PAY_ORDER, CANCEL_ORDER], ids=lambda plan: plan.kind.value)
async def test_a_saga_closed_by_an_earlier_release_is_settled_without_its_order(plan: Plan) -> None:
    run = resolved(plan, [DONE, UNKNOWN, PENDING])
    run.row.state = SagaState.RESOLVED
    run.row.resolve("settled", PaymentOutcomeUnknown())
    run.journal.orders[run.saga.order_id] = "PAID BY ANOTHER ATTEMPT"
    await run.go_on()
    assert run.row.state is SagaState.RESOLVED
    assert run.order == "PAID BY ANOTHER ATTEMPT"
    assert not [step for step in run.row.steps if step.state is UNKNOWN]


async def test_a_saga_of_an_unknown_plan_is_undone_by_what_its_steps_say() -> None:
    run = resolved(PAY_ORDER, [DONE, DONE, BEGUN])
    run.row.plan_version = UNDO_ONLY_VERSION
    for step in run.row.steps[:3]:
        step.name = f"new_{step.name}"
    await run.go_on()
    assert (run.row.state, run.order) == (SagaState.RESOLVED, "PENDING")
    assert run.services.effects == []
    assert run.services.cancelled == {f"{SAGA_ID}:{step}" for step in PAY_STEPS}
