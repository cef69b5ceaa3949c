"""Faults at every step of every plan: what is undone, in which order, and what never is."""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableMapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from common.errors import Code, DatabaseUnavailable, RemoteRefusal
from order_service.errors import SagaLost
from order_service.model.saga import Saga, SagaState, StepState
from order_service.model.saga_input import Failure
from order_service.saga.plan import CANCEL_ORDER, PAY_ORDER, Pivot, Plan, plan_of
from tests.support.sagas import (
    CANCEL_INPUT,
    CIRCUIT_OPEN,
    IN_PROGRESS,
    LIMITS,
    LOST,
    NOW,
    OVERLOADED,
    REFUND_REFUSED,
    REFUSED,
    SAGA_ID,
    UNREACHED,
    Crashed,
    Errors,
    SagaRun,
    pay_input,
    saga_of,
)

PAY_STEPS = [step.name for step in PAY_ORDER.steps]
PIVOT = next(step.name for step in PAY_ORDER.steps if isinstance(step, Pivot))
BEFORE_PIVOT = PAY_STEPS[: PAY_STEPS.index(PIVOT)]
CANCEL_STEPS = [step.name for step in CANCEL_ORDER.steps]
PLANS = [PAY_ORDER, CANCEL_ORDER]
STEPS = [(plan, step.name) for plan in PLANS for step in plan.steps]
LONG_AGO = NOW - timedelta(seconds=LIMITS.attention_s)
ONLY = {
    "redeem_coupon": pay_input(),
    "deduct_balance": pay_input(coupon_id=None),
    "confirm_payment": pay_input(coupon_id=None, balance_minor=None),
}
"""Payments by the step that they begin with."""
UNDOS = [(step, failing) for at, failing in enumerate(PAY_STEPS) for step in PAY_STEPS[: at + 1]]

each_plan = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.kind.value)
each_pay_step = pytest.mark.parametrize("step", PAY_STEPS)
applied_or_not = pytest.mark.parametrize("applied", [True, False], ids=["applied", "not applied"])
each_crash = pytest.mark.parametrize("where", ["before the call", "after the call", "with result"])


def paying(errors: Errors | None = None, *, applied: bool = False) -> SagaRun:
    return SagaRun(saga_of(PAY_ORDER), errors, applied=applied)


def undos_from(step: str) -> list[str]:
    """The undos after a failure at ``step``: of it and of all before."""
    return [f"{name}:undo" for name in PAY_STEPS[: PAY_STEPS.index(step) + 1]]


def assert_completed(run: SagaRun) -> None:
    plan = plan_of(run.saga)
    assert plan is not None
    assert run.row.state is SagaState.COMPLETED
    assert [step.state for step in run.row.steps] == [StepState.DONE] * len(plan.names)
    assert run.services.undos == []
    if plan is PAY_ORDER:
        assert run.order == "PAID"
        assert run.services.effects == [f"{SAGA_ID}:{name}" for name in PAY_STEPS]
    else:
        assert run.order == "CANCELLED"


def assert_compensated(run: SagaRun, failing: str) -> None:
    assert run.row.state is SagaState.COMPENSATED
    assert run.order == "PENDING"
    assert run.services.effects == []
    begun = PAY_STEPS[: PAY_STEPS.index(failing) + 1]
    assert run.services.cancelled >= {f"{SAGA_ID}:{name}" for name in begun}
    states = {step.name: step.state for step in run.row.steps}
    for name in PAY_STEPS:
        assert states[name] is (StepState.COMPENSATED if name in begun else StepState.PENDING)


def crash_at(run: SagaRun, call: str, where: str) -> None:
    """The replica dies at this point of a call."""
    step, _, undo = call.partition(":")
    with_result = StepState.COMPENSATED if undo else StepState.DONE
    if where == "with result":
        run.journal.crash_when = lambda saga: saga.step(step).state is with_result
    else:
        run.services.errors[call] = [Crashed()]
        run.services.applied = where == "after the call"


# -- success -------------------------------------------------------------------------------------


@each_plan
async def test_each_step_is_called_once_after_it_was_written(plan: Plan) -> None:
    run = SagaRun(saga_of(plan))
    states: list[StepState] = []
    run.services.on_call = lambda step: states.append(run.row.step(step).state)
    await run.run()
    assert_completed(run)
    assert states == [StepState.BEGUN] * len(plan.steps), "in the journal, when it is called"
    assert run.takeovers == 0
    ids = [request.request_id for request in run.services.requests]
    assert ids == [f"{SAGA_ID}:{step.name}" for step in plan.steps]
    count = len(plan.steps)
    # What is called first was inserted as begun.
    begun = [(*["DONE"] * at, "BEGUN", *["PENDING"] * (count - at)) for at in range(1, count)]
    if plan is CANCEL_ORDER:
        begun = []
    assert run.journal.history == [*begun, ("DONE",) * (count + 1)]
    # The last step has the time of its transaction.
    *steps, _ = run.row.steps
    begins, ends = [step.begin_time or NOW for step in steps], [step.end_time for step in steps]
    for begin, end in zip(begins, ends, strict=True):
        assert end is not None
        assert NOW <= begin < end
    assert begins == sorted(begins)


@each_plan
def test_request_ids_of_steps_fit_the_contract(plan: Plan) -> None:
    assert max(len(f"{SAGA_ID}:{name}:undo") for name in plan.names) <= 64


async def test_a_cancellation_compensates_the_steps_of_the_saga_that_paid() -> None:
    run = await SagaRun(saga_of(CANCEL_ORDER)).run()
    assert run.services.cancelled == {f"{CANCEL_INPUT.pay_saga_id}:{step}" for step in PAY_STEPS}


@each_plan
async def test_a_saga_whose_replica_dies_before_it_calls_is_taken_over(plan: Plan) -> None:
    run = SagaRun(saga_of(plan))
    states: list[int] = []
    run.services.on_call = lambda step: states.append(run.row.step(step).attempts)
    await run.go_on()
    assert_completed(run)
    first = 1 if plan is PAY_ORDER else len(plan.steps)
    # The replica before may have called them: the journal has both attempts, before the second.
    assert states == [2] * first + [1] * (len(plan.steps) - first)
    assert run.row.snapshot > 0


# -- before the pivot ----------------------------------------------------------------------------


@each_pay_step
async def test_a_refused_step_and_all_before_it_are_undone_together(step: str) -> None:
    run = await paying({step: [REFUSED]}).run()
    assert_compensated(run, step)
    assert sorted(run.services.undos) == sorted(undos_from(step))
    assert run.row.failure == Failure.of(REFUSED)
    # The refused call arrives once more, late.
    late = next(r for r in run.services.requests if r.request_id == f"{SAGA_ID}:{step}")
    with pytest.raises(RemoteRefusal, match="compensated"):
        await run.services.call("Late", late)
    assert run.services.effects == []


@applied_or_not
@pytest.mark.parametrize("step", BEFORE_PIVOT)
async def test_an_unknown_step_before_the_pivot_is_undone_as_a_refused_one(
    step: str, applied: bool
) -> None:
    run = await paying({step: [LOST]}, applied=applied).run()
    assert_compensated(run, step)
    assert sorted(run.services.undos) == sorted(undos_from(step))
    assert run.failure.reason == "GATEWAY_UNAVAILABLE"
    assert run.failure.metadata["step"] == step


@pytest.mark.parametrize("epoch", [1, 2], ids=["its replica", "taken over"])
@pytest.mark.parametrize("first", PAY_STEPS)
async def test_a_saga_late_for_its_pivot_does_no_step(first: str, epoch: int) -> None:
    """A step before the pivot was inserted as begun, so it is undone; a pivot was not."""
    saga = saga_of(PAY_ORDER, ONLY[first], time_left_s=-1.0)
    saga.epoch = epoch
    run = await SagaRun(saga).run()
    assert (run.row.state, run.order) == (SagaState.COMPENSATED, "PENDING")
    assert run.services.calls == ([] if first == PIVOT else [f"{first}:undo"])
    assert run.services.effects == []


# -- the pivot -----------------------------------------------------------------------------------


@applied_or_not
@pytest.mark.parametrize(
    "errors",
    [[LOST], [LOST] * 3, [DatabaseUnavailable()]],
    ids=["lost", "lost three times", "its database is unavailable"],
)
async def test_an_unknown_pivot_is_called_again(errors: list[BaseException], applied: bool) -> None:
    times = len(errors)
    run = await paying({PIVOT: errors}, applied=applied).run()
    assert_completed(run)
    assert run.services.calls == [*PAY_STEPS, *[PIVOT] * times]


@pytest.mark.parametrize("state", [StepState.BEGUN, StepState.UNKNOWN])
async def test_a_saga_whose_time_ends_after_its_pivot_began_completes(state: StepState) -> None:
    run = paying({PIVOT: [LOST]}, applied=True)

    def die_and_be_late(_: Saga) -> bool:
        if run.row.step(PIVOT).state is not state:
            return False
        run.row.time_left_s = -1.0
        return True

    run.journal.crash_when = die_and_be_late
    assert_completed(await run.run())
    assert run.row.time_left_s == -1.0


@pytest.mark.parametrize(
    ("error", "metadata"),
    [(UNREACHED, {}), (IN_PROGRESS, {"step": PIVOT, "cause": "PAYMENT_IN_PROGRESS"})],
    ids=["not reached", "another payment of the key runs"],
)
async def test_a_pivot_not_reached_is_called_a_few_times_then_undone(
    error: BaseException, metadata: dict[str, str]
) -> None:
    run = await paying({PIVOT: [error] * 100}).run()
    assert_compensated(run, PIVOT)
    assert run.services.calls.count(PIVOT) == LIMITS.unreached_max
    failure = run.failure
    assert (failure.code, failure.reason) == (Code.UNAVAILABLE, "GATEWAY_UNAVAILABLE")
    assert (failure.metadata, failure.retry_after_s) == (metadata, None)


async def test_only_unreached_calls_in_a_row_count() -> None:
    run = await paying({PIVOT: [UNREACHED, LOST, LOST, LOST, UNREACHED, LOST, UNREACHED]}).run()
    assert_completed(run)
    assert run.services.calls.count(PIVOT) == 8


async def test_a_pivot_that_is_known_not_to_be_reached_is_called_once() -> None:
    run = await paying({PIVOT: [CIRCUIT_OPEN] * 100}).run()
    assert_compensated(run, PIVOT)
    assert (run.services.calls.count(PIVOT), run.takeovers) == (1, 0)
    assert run.failure.reason == "GATEWAY_UNAVAILABLE"
    # The refusal is stored: the same attempt can never succeed.
    assert run.failure.retry_after_s is None


async def test_an_overloaded_payment_service_declines_no_order() -> None:
    run = await paying({PIVOT: [OVERLOADED] * 10}).run()
    assert_completed(run)
    assert run.services.calls.count(PIVOT) == 11
    assert run.services.undos == []


@pytest.mark.parametrize(
    ("before", "undone"),
    [([], True), ([UNREACHED], True), ([LOST], False)],
    ids=["overloaded only", "never reached", "perhaps reached"],
)
async def test_an_overload_ends_a_late_attempt_if_no_call_may_have_arrived(
    before: list[BaseException], undone: bool
) -> None:
    run = paying({PIVOT: [*before, OVERLOADED, OVERLOADED]})
    await run.first()
    await run.go_on(len(before))
    assert run.row.state is SagaState.RUNNING
    run.row.time_left_s = -1.0
    await run.go_on()
    if undone:
        assert_compensated(run, PIVOT)
    else:
        assert_completed(run)


async def test_a_pivot_that_stays_unknown_needs_attention_and_goes_on() -> None:
    run = SagaRun(saga_of(PAY_ORDER, create_time=LONG_AGO), {PIVOT: [LOST] * 100})
    await run.run()
    assert run.row.state is SagaState.NEEDS_ATTENTION
    assert (run.row.failure, run.row.waits_for) == (None, ["payment"])
    assert run.services.undos == []
    assert run.order == "PAYING"
    run.services.errors.clear()
    await run.go_on()
    assert_completed(run)


# -- compensation, cancellation and the end ------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
@each_pay_step
async def test_an_undo_that_fails_is_repeated_until_it_succeeds(step: str, times: int) -> None:
    run = await paying({PAY_STEPS[-1]: [REFUSED], f"{step}:undo": [LOST] * times}).run()
    assert_compensated(run, PAY_STEPS[-1])
    assert run.services.undos.count(f"{step}:undo") == times + 1
    assert run.row.step(step).attempts == times + 2


@each_pay_step
async def test_an_undo_that_keeps_failing_stops_no_other_undo(step: str) -> None:
    errors: Errors = {PIVOT: [REFUSED], f"{step}:undo": [LOST] * 100}
    run = await SagaRun(saga_of(PAY_ORDER, create_time=LONG_AGO), errors).run()
    assert run.row.state is SagaState.NEEDS_ATTENTION
    assert run.row.last_error == "UNAVAILABLE"
    assert run.order == "PAYING"
    assert run.services.effects == [f"{SAGA_ID}:{step}"] * (step != PIVOT)
    for other in set(PAY_STEPS) - {step}:
        assert run.row.step(other).state is StepState.COMPENSATED
        assert run.services.undos.count(f"{other}:undo") == 1
    run.services.errors.clear()
    await run.go_on()
    assert_compensated(run, PIVOT)


@pytest.mark.parametrize(
    ("plan", "call"), [(PAY_ORDER, f"{PIVOT}:undo"), (CANCEL_ORDER, "cancel_payment")]
)
async def test_a_refund_that_is_refused_is_reported_and_holds_up_nothing_else(
    plan: Plan, call: str
) -> None:
    run = SagaRun(saga_of(plan), {PIVOT: [REFUSED], call: [REFUND_REFUSED] * 3})
    await run.first()
    step = run.row.step(call.partition(":")[0])
    assert run.row.state is SagaState.NEEDS_ATTENTION
    assert step.last_error == "FAILED_PRECONDITION REFUND_REFUSED NOT_CANCELABLE_PAYMENT"
    assert run.row.waits_for == ["gateway"]
    assert run.journal.notes == ["REFUND_REFUSED NOT_CANCELABLE_PAYMENT"]
    open_steps = [each for each in run.row.steps if each.to_undo and each.participant]
    assert [each for each in open_steps if each.state is not StepState.DONE] == [step]
    # A person refunds by other means and records it: then the same call succeeds.
    await run.go_on()
    assert run.row.state in {SagaState.COMPENSATED, SagaState.COMPLETED}
    assert run.journal.notes == ["REFUND_REFUSED NOT_CANCELABLE_PAYMENT"]


@pytest.mark.parametrize("error", [REFUSED, LOST, UNREACHED], ids=["refused", "lost", "unreached"])
@pytest.mark.parametrize("step", CANCEL_STEPS)
async def test_a_cancellation_only_goes_forward(step: str, error: BaseException) -> None:
    run = await SagaRun(saga_of(CANCEL_ORDER, time_left_s=None), {step: [error] * 2}).run()
    assert_completed(run)
    assert run.services.calls.count(step) == 3


async def test_closing_that_fails_is_repeated_and_never_undone() -> None:
    run = paying()
    run.journal.errors["close"] = [DatabaseUnavailable(), DatabaseUnavailable()]
    assert_completed(await run.run())


# -- crashes and defects -------------------------------------------------------------------------


@each_crash
@pytest.mark.parametrize(("plan", "step"), STEPS, ids=lambda part: getattr(part, "kind", part))
async def test_a_crash_at_any_point_is_taken_over(plan: Plan, step: str, where: str) -> None:
    run = SagaRun(saga_of(plan))
    crash_at(run, step, where)
    assert_completed(await run.run())
    assert (run.takeovers, run.row.epoch) == (1, 2)


@each_crash
@pytest.mark.parametrize(("step", "failing"), UNDOS)
async def test_a_crash_while_undoing_is_taken_over_and_undone(
    step: str, failing: str, where: str
) -> None:
    run = paying({failing: [REFUSED]})
    crash_at(run, f"{step}:undo", where)
    assert_compensated(await run.run(), failing)
    assert run.takeovers == 1
    assert sorted(set(run.services.undos)) == sorted(undos_from(failing))


def defect(*_: Any) -> Any:
    raise KeyError("defect")


@pytest.mark.parametrize("where", ["next_step", "close"])
async def test_a_saga_that_meets_a_defect_needs_attention(
    where: str, monkeypatch: pytest.MonkeyPatch, logged: list[MutableMapping[str, Any]]
) -> None:
    run = SagaRun(saga_of(PAY_ORDER, create_time=LONG_AGO))
    with monkeypatch.context() as patch:
        if where == "close":
            run.journal.errors["close"] = [KeyError("defect")] * 3
        else:
            patch.setattr(Plan, where, defect)
        await run.run(takeovers_max=2)
    assert run.row.state is SagaState.NEEDS_ATTENTION
    assert run.row.attempts == 3
    assert run.row.last_error == "INTERNAL"
    events = Counter(each["event"] for each in logged)
    assert (events["saga_failed"], events["saga_needs_attention"]) == (3, 1)
    await run.go_on()
    assert_completed(run)


@pytest.mark.parametrize("error", [SagaLost(), DatabaseUnavailable()])
@pytest.mark.parametrize("defective", [True, False])
async def test_without_its_journal_a_saga_calls_nothing_that_it_has_not_begun(
    error: Exception, defective: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = paying()
    run.journal.errors["write"] = [error]
    if defective:
        monkeypatch.setattr(Plan, "next_step", defect)
    # The lease has ended: a write is not repeated.
    assert await run.start(run.runner(replace(LIMITS, lease_s=0.0))) is None
    assert run.row == run.saga
    # The row has the first step as begun.
    assert run.services.calls == ([] if defective else PAY_STEPS[:1])


async def test_a_plan_with_other_steps_is_not_executed() -> None:
    saga = saga_of(PAY_ORDER)
    saga.steps[0].name = "redeem_voucher"
    run = SagaRun(saga)
    await run.first()
    assert plan_of(saga) is None
    assert run.services.calls == []
    assert "plan" in run.row.last_error
