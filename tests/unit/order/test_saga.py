"""Every fault at every step of the table: what is undone, in which order, and what never is."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from common.errors import Code, DatabaseUnavailable
from order_service.clients import Outcome, outcome_of
from order_service.model.saga import NOW, Saga, State, StepState
from order_service.saga.plan import CANCEL_ORDER, PAY_ORDER, Pivot, Plan, plan_of
from order_service.saga.journal import SagaLost
from order_service.saga.runner import SagaLimits
from tests.support.saga_world import (
    DISCOUNT,
    IN_PROGRESS,
    LIMITS,
    LOST,
    REFUSED,
    SAGA_ID,
    UNREACHED,
    Crashed,
    Fault,
    Play,
    World,
    cancel_asked,
    pay_asked,
    plans,
    saga_of,
    settle,
)

STEPS = [pytest.param(plan, step, id=step.name) for plan in plans() for step in plan.steps]
BEFORE_PIVOT = [
    pytest.param(step.name, id=step.name) for step in PAY_ORDER.steps if not isinstance(step, Pivot)
]
PIVOT = next(step.name for step in PAY_ORDER.steps if isinstance(step, Pivot))
NAMES = [step.name for step in PAY_ORDER.steps]
UNDOING = [(step, failing) for at, failing in enumerate(NAMES) for step in NAMES[: at + 1]]
CRASHES = ["before the call", "after the call", "after the result"]


def undone_from(step: str) -> list[str]:
    """The undos that a failure at ``step`` leads to: it, and all before it, the last first."""
    return [f"{name}:undo" for name in reversed(NAMES[: NAMES.index(step) + 1])]


def undos(world: World) -> list[str]:
    return [call for call in world.calls if call.endswith(":undo")]


def assert_completed(play: Play, plan: Plan) -> None:
    assert play.row.state is State.COMPLETED
    assert [step.state for step in play.row.steps] == [StepState.DONE] * len(plan.names)
    assert undos(play.world) == []
    if plan is PAY_ORDER:
        assert play.order == "PAID"
        assert play.world.effects == [f"{SAGA_ID}:{name}" for name in NAMES]
    else:
        assert play.order == "CANCELLED"


def assert_compensated(play: Play, step: str) -> None:
    assert play.row.state is State.COMPENSATED
    assert play.order == "PENDING"
    assert play.world.effects == []
    begun = NAMES[: NAMES.index(step) + 1]
    assert play.world.cancelled >= {f"{SAGA_ID}:{name}" for name in begun}
    states = {record.name: record.state for record in play.row.steps}
    assert all(states[name] is StepState.COMPENSATED for name in begun)
    assert all(states[name] is StepState.PENDING for name in NAMES if name not in begun)


def crash(play: Play, step: str, where: str) -> None:
    """Have the replica die at this point of this step."""
    if where == "after the result":

        def result_known(saga: Saga) -> bool:
            return saga.step(step).state is StepState.DONE

        play.journal.crash_when = result_known
    else:
        play.world.faults[step] = Fault(Crashed(), lands=where == "after the call")


@pytest.mark.parametrize("plan", [pytest.param(plan, id=plan.kind.value) for plan in plans()])
async def test_all_goes_well(plan: Plan) -> None:
    play = await Play.of(saga_of(plan)).run()
    assert_completed(play, plan)
    assert play.world.calls == [step.name for step in plan.steps]
    assert play.replicas == 0
    ids = [request.request_id for request in play.world.requests]
    assert ids == [f"{SAGA_ID}:{step.name}" for step in plan.steps]


@pytest.mark.parametrize("plan", [pytest.param(plan, id=plan.kind.value) for plan in plans()])
def test_request_ids_fit_the_contract(plan: Plan) -> None:
    assert max(len(f"{SAGA_ID}:{name}:undo") for name in plan.names) <= 64


@pytest.mark.parametrize("plan", [pytest.param(plan, id=plan.kind.value) for plan in plans()])
async def test_each_step_is_written_down_before_its_call_and_costs_one_write(plan: Plan) -> None:
    play = await Play.of(saga_of(plan)).run()
    done, begun, pending = "DONE", "BEGUN", "PENDING"
    count = len(plan.steps)
    writes = [(*[done] * at, begun, *[pending] * (count - at)) for at in range(count)]
    assert play.journal.history == [*writes, (done,) * (count + 1)]


@pytest.mark.parametrize("step", [step.name for step in PAY_ORDER.steps])
async def test_refused_undoes_every_begun_step_in_reverse_the_refused_one_included(
    step: str,
) -> None:
    play = await Play.of(saga_of(PAY_ORDER), World({step: Fault(REFUSED)})).run()
    assert_compensated(play, step)
    assert undos(play.world) == undone_from(step)
    assert play.row.failure is not None
    told = play.row.failure.refusal()
    assert (told.code, told.reason, told.metadata) == (
        REFUSED.code,
        REFUSED.reason,
        REFUSED.metadata,
    )


@pytest.mark.parametrize("lands", [True, False], ids=["landed", "not landed"])
@pytest.mark.parametrize("step", BEFORE_PIVOT)
async def test_unknown_before_the_pivot_is_undone_like_refused(step: str, lands: bool) -> None:
    play = await Play.of(saga_of(PAY_ORDER), World({step: Fault(LOST, lands=lands)})).run()
    assert_compensated(play, step)
    assert undos(play.world) == undone_from(step)
    assert play.row.failure is not None
    assert play.row.failure.reason == "GATEWAY_UNAVAILABLE"
    assert play.row.failure.metadata["step"] == step


@pytest.mark.parametrize("step", [step.name for step in PAY_ORDER.steps])
async def test_a_late_original_is_refused_after_its_undoing(step: str) -> None:
    play = Play.of(saga_of(PAY_ORDER), World({step: Fault(REFUSED)}))
    await play.run()
    late = next(r for r in play.world.requests if r.request_id == f"{SAGA_ID}:{step}")
    with pytest.raises(type(REFUSED), match="taken back"):
        await play.world.call("Late", late)
    assert play.world.effects == []


@pytest.mark.parametrize("lands", [True, False], ids=["landed", "not landed"])
@pytest.mark.parametrize("times", [1, 3])
async def test_an_unknown_pivot_is_asked_again_neither_undone_nor_guessed(
    times: int, lands: bool
) -> None:
    world = World({PIVOT: Fault(LOST, lands=lands, times=times)})
    play = await Play.of(saga_of(PAY_ORDER), world).run()
    assert_completed(play, PAY_ORDER)
    assert world.calls == [*NAMES, *[PIVOT] * times]


async def test_an_unknown_pivot_is_asked_again_after_the_sagas_time() -> None:
    world = World({PIVOT: Fault(LOST, lands=True, times=3)})
    play = Play.of(saga_of(PAY_ORDER), world)

    def time_is_up(saga: Saga) -> bool:
        if saga.step(PIVOT).state is StepState.UNKNOWN:
            saga.time_left_s = -1.0
        return False

    play.journal.crash_when = time_is_up
    await play.run()
    assert_completed(play, PAY_ORDER)


async def test_a_gateway_that_is_not_reached_is_tried_a_few_times_then_undone() -> None:
    world = World({PIVOT: Fault(UNREACHED, times=100)})
    play = await Play.of(saga_of(PAY_ORDER), world).run()
    assert_compensated(play, PIVOT)
    assert world.calls.count(PIVOT) == LIMITS.unreached_max
    assert play.row.failure is not None
    assert play.row.failure.reason == "GATEWAY_UNAVAILABLE"

    world = World({PIVOT: Fault(UNREACHED, times=1)})
    assert_completed(await Play.of(saga_of(PAY_ORDER), world).run(), PAY_ORDER)


async def test_an_attempt_that_another_payment_kept_out_is_told_to_try_anew() -> None:
    world = World({PIVOT: Fault(IN_PROGRESS, times=100)})
    play = await Play.of(saga_of(PAY_ORDER), world).run()
    assert_compensated(play, PIVOT)
    assert world.calls.count(PIVOT) == LIMITS.unreached_max
    assert play.row.failure is not None
    told = play.row.failure.refusal()
    assert (told.code, told.reason) == (Code.UNAVAILABLE, "GATEWAY_UNAVAILABLE")
    assert told.metadata == {"step": PIVOT, "cause": "PAYMENT_IN_PROGRESS"}


async def test_only_tries_in_a_row_that_did_not_reach_the_gateway_count() -> None:
    play = Play.of(saga_of(PAY_ORDER))
    answers = [LOST, LOST, LOST, UNREACHED, LOST, UNREACHED]
    call = play.world.call

    async def answering(method: str, request: Any) -> Any:
        if request.request_id.endswith(PIVOT) and answers:
            play.world.calls.append(PIVOT)
            raise answers.pop(0)
        return await call(method, request)

    play.world.call = answering  # type: ignore[method-assign]
    await play.run()
    assert_completed(play, PAY_ORDER)
    assert play.world.calls.count(PIVOT) == 7


async def test_an_unknown_pivot_stays_undecided_until_a_person_looks() -> None:
    world = World({PIVOT: Fault(LOST, times=1_000)})
    play = await Play.of(saga_of(PAY_ORDER), world).run()
    assert play.row.state is State.NEEDS_ATTENTION
    assert play.row.failure is None
    assert undos(world) == []
    assert play.order == "PAYING"


@pytest.mark.parametrize("where", CRASHES)
@pytest.mark.parametrize(("plan", "step"), STEPS)
async def test_a_crash_at_any_point_is_taken_over_and_goes_on(
    plan: Plan, step: Any, where: str
) -> None:
    play = Play.of(saga_of(plan))
    crash(play, step.name, where)
    await play.run()
    assert_completed(play, plan)
    assert play.replicas == 1
    assert play.row.epoch == 2


@pytest.mark.parametrize("where", CRASHES)
@pytest.mark.parametrize(("step", "failing"), UNDOING)
async def test_a_crash_while_undoing_is_taken_over_and_goes_on_undoing(
    step: str, failing: str, where: str
) -> None:
    play = Play.of(saga_of(PAY_ORDER), World({failing: Fault(REFUSED)}))
    if where == "after the result":
        play.journal.crash_when = lambda saga: saga.step(step).state is StepState.COMPENSATED
    else:
        play.world.faults[f"{step}:undo"] = Fault(Crashed(), lands=where == "after the call")
    await play.run()
    assert_compensated(play, failing)
    assert play.replicas == 1
    # Repeated where the crash was, else once each, and always from the last to the first.
    first = list(dict.fromkeys(undos(play.world)))
    assert first == undone_from(failing)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("step", NAMES)
async def test_an_undo_that_fails_is_repeated_until_it_succeeds(step: str, times: int) -> None:
    world = World({NAMES[-1]: Fault(REFUSED), f"{step}:undo": Fault(LOST, times=times)})
    play = await Play.of(saga_of(PAY_ORDER), world).run()
    assert_compensated(play, NAMES[-1])
    assert undos(world).count(f"{step}:undo") == times + 1
    assert play.row.step(step).attempts == times + 2


@pytest.mark.parametrize("step", NAMES)
async def test_an_undo_that_keeps_failing_needs_attention_and_goes_on_when_told(
    step: str,
) -> None:
    world = World({NAMES[-1]: Fault(REFUSED), f"{step}:undo": Fault(LOST, times=1_000)})
    play = await Play.of(saga_of(PAY_ORDER), world).run()
    assert play.row.state is State.NEEDS_ATTENTION
    assert play.row.last_error == "UNAVAILABLE"
    assert play.order == "PAYING"
    world.faults.clear()
    play.row.retry()
    play.saga = copy.deepcopy(play.row)
    await play.run()
    assert_compensated(play, NAMES[-1])


@pytest.mark.parametrize("error", [REFUSED, LOST, UNREACHED], ids=["refused", "lost", "unreached"])
@pytest.mark.parametrize("step", [step.name for step in CANCEL_ORDER.steps])
async def test_a_cancellation_knows_only_forward(step: str, error: Exception) -> None:
    world = World({step: Fault(error, times=2)})
    play = await Play.of(saga_of(CANCEL_ORDER, time_left_s=None), world).run()
    assert_completed(play, CANCEL_ORDER)
    assert world.calls.count(step) == 3


async def test_a_cancellation_takes_back_the_steps_of_the_saga_that_paid() -> None:
    asked = cancel_asked()
    play = await Play.of(saga_of(CANCEL_ORDER, asked)).run()
    assert play.world.cancelled == {f"{asked.pay_saga_id}:{step.name}" for step in PAY_ORDER.steps}


async def test_closing_that_fails_is_repeated_and_never_undone() -> None:
    play = Play.of(saga_of(PAY_ORDER))
    play.journal.refuses = [DatabaseUnavailable(), DatabaseUnavailable()]
    await play.run()
    assert_completed(play, PAY_ORDER)


async def test_time_that_is_up_before_the_pivot_leads_back() -> None:
    play = await Play.of(saga_of(PAY_ORDER, time_left_s=-1.0)).run()
    assert play.row.state is State.COMPENSATED
    assert play.world.calls == []

    play = Play.of(saga_of(PAY_ORDER))
    crash(play, PIVOT, "after the result")
    play.journal.rows[SAGA_ID].time_left_s = -1.0
    await play.run()
    assert_completed(play, PAY_ORDER)


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, NAMES),
        ({"coupon_id": None}, NAMES[1:]),
        ({"balance_minor": None}, ["redeem_coupon", "confirm_payment"]),
        ({"balance_minor": 0}, ["redeem_coupon", "confirm_payment"]),
        ({"balance_minor": 1_000 - DISCOUNT}, ["redeem_coupon", "deduct_balance"]),
        ({"balance_minor": None, "payment_key": None}, ["redeem_coupon", "deduct_balance"]),
        ({"coupon_id": None, "balance_minor": None, "payment_key": None}, ["deduct_balance"]),
        ({"coupon_id": None, "balance_minor": None}, ["confirm_payment"]),
        ({"subtotal_minor": DISCOUNT, "balance_minor": None}, ["redeem_coupon"]),
        ({"subtotal_minor": 0, "balance_minor": None}, []),
    ],
)
async def test_steps_with_nothing_to_do_are_skipped(
    changes: dict[str, Any], done: list[str]
) -> None:
    play = await Play.of(saga_of(PAY_ORDER, pay_asked(**changes))).run()
    assert play.row.state is State.COMPLETED
    assert play.world.calls == done
    states = {record.name: record.state for record in play.row.steps}
    assert {name for name in NAMES if states[name] is StepState.SKIPPED} == set(NAMES) - set(done)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"balance_minor": 1_000}, "AMOUNT_EXCEEDS_DUE"),
        ({"balance_minor": 300, "payment_key": None}, "PAYMENT_KEY_REQUIRED"),
    ],
)
async def test_what_the_discount_makes_impossible_is_refused_after_the_coupon_is_back(
    changes: dict[str, Any], reason: str
) -> None:
    asked = pay_asked(**changes)
    asked.check("order")
    play = await Play.of(saga_of(PAY_ORDER, asked)).run()
    assert_compensated(play, "redeem_coupon")
    assert play.world.calls == ["redeem_coupon", "redeem_coupon:undo"]
    assert play.row.failure is not None
    assert play.row.failure.reason == reason


async def test_a_stale_replica_stops_at_its_next_write() -> None:
    play = Play.of(saga_of(PAY_ORDER))
    paused, woken = asyncio.Event(), asyncio.Event()
    call = play.world.call

    async def pausing(method: str, request: Any) -> Any:
        answer = await call(method, request)
        if request.request_id.endswith(":deduct_balance") and not paused.is_set():
            paused.set()
            await woken.wait()
        return answer

    play.world.call = pausing  # type: ignore[method-assign]
    stale, fresh = play.runner(), play.runner()
    stale.start(copy.deepcopy(play.saga))
    await paused.wait()
    await fresh.sweep()
    await settle(fresh)
    assert_completed(play, PAY_ORDER)
    calls = list(play.world.calls)
    woken.set()
    await settle(stale)
    assert play.world.calls == calls, "it made a call that was not its to make"
    assert play.row.epoch == 2


async def test_a_lost_lease_ends_the_call_that_is_running() -> None:
    play = Play.of(saga_of(PAY_ORDER))
    ended = asyncio.Event()

    async def hanging(method: str, request: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    play.world.call = hanging  # type: ignore[method-assign]
    runner = play.runner()
    runner.start(copy.deepcopy(play.saga))
    await asyncio.sleep(0.01)
    await runner.beat()
    assert not ended.is_set()
    play.row.epoch += 1
    await runner.beat()
    await settle(runner)
    assert ended.is_set()


async def test_a_stopping_replica_hands_its_sagas_over() -> None:
    play = Play.of(saga_of(PAY_ORDER))
    reached, go = asyncio.Event(), asyncio.Event()
    call = play.world.call

    async def slow(method: str, request: Any) -> Any:
        reached.set()
        await go.wait()
        return await call(method, request)

    play.world.call = slow  # type: ignore[method-assign]
    runner = play.runner()
    runner.start(copy.deepcopy(play.saga))
    await reached.wait()
    stopping = asyncio.create_task(runner.hand_over())
    await asyncio.sleep(0)
    go.set()
    await stopping
    # The call that ran was awaited, its result is kept, and nothing further was begun.
    assert play.world.calls == ["redeem_coupon"]
    assert play.row.step("redeem_coupon").state is StepState.DONE
    assert play.row.waits
    await play.run()


@pytest.mark.parametrize("defective", ["advance", "close"])
async def test_a_defect_of_ours_waits_like_any_error_and_then_for_a_person(
    defective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Play.of(saga_of(PAY_ORDER))

    def broken(_plan: Plan, _saga: Saga) -> None:
        raise KeyError(_saga.saga_id)

    async def unclosed(saga: Saga) -> None:
        raise KeyError(saga.saga_id)

    with monkeypatch.context() as patch:
        if defective == "advance":
            patch.setattr(Plan, "advance", broken)
        else:
            patch.setattr(play.journal, "close", unclosed)
        await play.run()
    assert play.row.state is State.NEEDS_ATTENTION
    assert play.row.attempts == LIMITS.attempts_max
    assert play.row.last_error == "INTERNAL"
    play.row.retry()
    play.saga = copy.deepcopy(play.row)
    await play.run()
    assert_completed(play, PAY_ORDER)


@pytest.mark.parametrize("error", [SagaLost(), DatabaseUnavailable()])
async def test_a_defect_that_cannot_be_written_down_leaves_the_row_as_it_is(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Play.of(saga_of(PAY_ORDER))

    async def unwritten(saga: Saga, *, lease_s: float) -> None:
        raise error

    def broken(_plan: Plan, _saga: Saga) -> None:
        raise KeyError(_saga.saga_id)

    monkeypatch.setattr(play.journal, "write", unwritten)
    monkeypatch.setattr(Plan, "advance", broken)
    runner = play.runner()
    runner.start(copy.deepcopy(play.saga))
    await settle(runner)
    assert play.row == play.saga
    assert runner._at_work == {}


async def test_a_plan_whose_steps_are_not_this_releases_is_left_alone_and_shown() -> None:
    saga = saga_of(PAY_ORDER)
    saga.steps[0].name = "redeem_voucher"
    play = await Play.of(saga).run()
    assert plan_of(saga) is None
    assert play.world.calls == []
    assert play.row.state is State.NEEDS_ATTENTION
    assert "plan" in play.row.last_error


async def test_a_journal_that_cannot_be_written_ends_the_run_before_the_call() -> None:
    play = Play.of(saga_of(PAY_ORDER))

    async def away(saga: Saga, *, lease_s: float) -> None:
        raise DatabaseUnavailable

    play.journal.write = away  # type: ignore[method-assign]
    runner = play.runner()
    runner.start(copy.deepcopy(play.saga))
    await settle(runner)
    assert play.world.calls == []


async def test_room_is_bounded() -> None:
    play = Play.of(saga_of(PAY_ORDER))
    runner = play.runner(SagaLimits(running_max=0))
    assert not runner.has_room
    assert await runner.sweep() == 0


async def test_new_payments_leave_room_for_what_has_to_be_taken_over() -> None:
    play = Play.of(saga_of(PAY_ORDER))
    hanging = asyncio.Event()

    async def hang(method: str, request: Any) -> Any:
        await hanging.wait()

    play.world.call = hang  # type: ignore[method-assign]
    runner = play.runner(SagaLimits(running_max=4, hand_over_s=0.0))
    for number in range(3):
        assert runner.has_room
        saga = copy.deepcopy(play.saga)
        saga.saga_id = f"{number}"
        play.journal.rows[saga.saga_id] = copy.deepcopy(saga)
        play.journal.rows[saga.saga_id].state = State.NEEDS_ATTENTION
        runner.start(saga)
    assert not runner.has_room
    assert await runner.sweep() == 1
    await runner.hand_over()


async def test_the_journal_fences_by_epoch() -> None:
    play = Play.of(saga_of(PAY_ORDER))
    await play.journal.take_over(lease_s=1, room=1)
    with pytest.raises(SagaLost):
        await play.journal.write(play.saga, lease_s=1)


def test_only_a_plain_refusal_counts_as_one() -> None:
    assert outcome_of(REFUSED) is Outcome.REFUSED
    assert outcome_of(LOST) is Outcome.UNKNOWN
    assert outcome_of(UNREACHED) is Outcome.UNREACHED
    assert outcome_of(DatabaseUnavailable()) is Outcome.UNKNOWN


def test_times_are_left_to_the_database() -> None:
    saga = saga_of(PAY_ORDER)
    record = saga.steps[0]
    saga.begin(record)
    assert record.begin_time == NOW
    closed = saga.closed(State.COMPLETED, saga.steps[-1])
    assert closed.steps[-1].end_time == NOW
    assert saga.steps[-1].end_time is None
