"""Sagas in the rows of the earlier release: parked, resolved, and in the middle of a step."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from common.errors import Refusal
from order_service.errors import PaymentOutcomeUnknown
from order_service.model.saga import SagaState, StepRecord, StepState
from order_service.model.saga_input import Failure
from order_service.saga.plan import CANCEL_ORDER, PAY_ORDER, Plan
from tests.support.sagas import REFUSED, SAGA_ID, SagaRun, saga_of

BEGUN, DONE, UNKNOWN, PENDING = (
    StepState.BEGUN,
    StepState.DONE,
    StepState.UNKNOWN,
    StepState.PENDING,
)
PAY_STEPS = [step.name for step in PAY_ORDER.steps]
PIVOT = PAY_STEPS.index("confirm_payment")

each_state = pytest.mark.parametrize("state", [BEGUN, UNKNOWN, DONE])
each_plan = pytest.mark.parametrize(
    "plan", [PAY_ORDER, CANCEL_ORDER], ids=lambda plan: plan.kind.value
)
each_step = pytest.mark.parametrize("at", range(len(PAY_STEPS)))


def parked(plan: Plan, at: int, state: StepState, failure: Refusal | None = None) -> SagaRun:
    """A saga that the earlier release parked at a step, all before it done, days ago."""
    saga = saga_of(
        plan,
        plan_version=1,
        state=SagaState.NEEDS_ATTENTION,
        failure=failure and Failure.of(failure),
        attempts=60,
        time_left_s=-86_400.0 if plan is PAY_ORDER else None,
    )
    # Its steps have no participant and no request_id.
    saga.steps = [StepRecord(step.name, PENDING) for step in saga.steps]
    for step in saga.steps[: at + 1]:
        step.state = DONE
    saga.steps[at].state = state
    run = SagaRun(saga)
    if plan is PAY_ORDER:
        landed = [step.name for step in saga.steps if step.state in {DONE, UNKNOWN}]
        run.services.effects = [f"{SAGA_ID}:{step}" for step in landed]
    return run


@each_state
@each_step
@each_plan
async def test_a_parked_saga_goes_on_by_itself(plan: Plan, at: int, state: StepState) -> None:
    run = await parked(plan, at, state).go_on()
    # An attempt that has not reached its pivot in its time is given back.
    paid = plan is CANCEL_ORDER or at == PIVOT
    assert run.row.state is (SagaState.COMPLETED if paid else SagaState.COMPENSATED)
    assert run.order == ("CANCELLED" if plan is CANCEL_ORDER else "PAID" if paid else "PENDING")
    if plan is PAY_ORDER:
        assert len(run.services.effects) == (len(PAY_STEPS) if paid else 0)


@each_state
@each_step
async def test_a_saga_parked_while_compensating_gives_everything_back(
    at: int, state: StepState
) -> None:
    run = await parked(PAY_ORDER, at, state, REFUSED).go_on()
    assert (run.row.state, run.order) == (SagaState.COMPENSATED, "PENDING")
    assert run.services.effects == []
    assert run.services.cancelled == {f"{SAGA_ID}:{step}" for step in PAY_STEPS[: at + 1]}


@each_state
@each_step
@each_plan
async def test_a_parked_saga_can_be_resolved(plan: Plan, at: int, state: StepState) -> None:
    run = parked(plan, at, state)
    run.row.resolve("by hand", PaymentOutcomeUnknown())
    await run.go_on()
    assert run.row.state is SagaState.RESOLVED
    assert run.order == ("CANCELLED" if plan is CANCEL_ORDER else "PENDING")
    assert run.services.effects == []


@each_state
@each_step
async def test_a_saga_resolved_by_that_release_is_left_alone(at: int, state: StepState) -> None:
    run = parked(PAY_ORDER, at, state, REFUSED)
    run.row.state, run.row.resolution_reason = SagaState.RESOLVED, "by hand"
    await run.go_on()
    assert run.services.calls == []
    # Until a person settles it.
    run.row.resolve("settled", PaymentOutcomeUnknown())
    await run.go_on()
    assert run.row.state is SagaState.RESOLVED
    assert run.services.effects == []


def test_a_field_that_is_not_stored_has_the_default_of_its_first_release() -> None:
    assert asdict(StepRecord("deduct_balance")) == {
        "name": "deduct_balance",
        "state": "PENDING",
        "attempts": 0,
        "begin_time": None,
        "end_time": None,
        "last_error": "",
        "unreached": 0,
        "participant": "",
        "request_id": "",
        "undoes": "",
        "failures": 0,
        "first_failure_time": None,
        "next_attempt_time": None,
        "waits_for": "",
        "undo_begun": False,
        "fenced": False,
        "standing_minor": 0,
        "standing_reason": "",
    }
