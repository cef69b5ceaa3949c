"""The sagas of one replica: their ends, leases and number, and the stop of the replica."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest

from common.errors import DatabaseUnavailable, Internal
from order_service.model.saga import Saga, SagaState, StepState
from order_service.model.saga_input import Failure
from order_service.saga.plan import CANCEL_ORDER, PAY_ORDER, Plan
from order_service.saga.runner import Runner
from order_service.saga.running import SagaEnd, SagaLimits
from tests.support.sagas import (
    LOST,
    NOW,
    ORDER,
    REFUSED,
    SAGA_ID,
    Crashed,
    SagaRun,
    finish,
    pay_input,
    saga_of,
)
from tests.support.time_limits import LONG_S

STEP = "deduct_balance"


@pytest.fixture
def run() -> SagaRun:
    return SagaRun(saga_of(PAY_ORDER))


# -- the end of a saga ---------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [PAY_ORDER, CANCEL_ORDER], ids=lambda plan: plan.kind.value)
async def test_the_end_of_a_completed_saga_is_its_order(plan: Plan) -> None:
    assert await SagaRun(saga_of(plan)).first() == SagaEnd(ORDER, None)


async def test_the_end_of_a_compensated_saga_is_its_failure(run: SagaRun) -> None:
    run.services.errors[STEP] = [REFUSED]
    assert await run.first() == SagaEnd(ORDER, Failure.of(REFUSED))


@pytest.mark.parametrize(
    ("of_pivot", "of_close"),
    [([LOST], []), ([Crashed()], []), ([], [Internal()])],
    ids=["waits", "crashed", "cannot be closed"],
)
async def test_a_saga_left_before_its_end_has_none(
    run: SagaRun, of_pivot: list[BaseException], of_close: list[Exception]
) -> None:
    run.services.errors["confirm_payment"] = of_pivot
    run.journal.errors["close"] = of_close
    assert await run.first() is None


async def test_a_saga_cancelled_before_its_first_step_has_no_end(run: SagaRun) -> None:
    runner = run.runner(SagaLimits(hand_over_s=0.0))
    end = run.start(runner)
    (task,) = runner._tasks()
    task.cancel()
    await asyncio.wait({end}, timeout=LONG_S)
    assert end.done()
    assert end.result() is None
    assert runner.end_of(SAGA_ID) is None


async def test_the_end_is_found_by_id_while_the_saga_runs(run: SagaRun) -> None:
    gate = run.services.hold(STEP)
    runner = run.runner()
    end = run.start(runner)
    await gate.reached()
    assert runner.end_of(SAGA_ID) is end
    assert not end.done()
    gate.open()
    await finish(runner)
    assert (await end) is not None
    assert runner.end_of(SAGA_ID) is None


# -- the lease -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["write", "close"])
@pytest.mark.parametrize("failing", [None, "confirm_payment"], ids=["forward", "back"])
async def test_a_short_outage_of_the_database_does_not_stop_a_saga(
    run: SagaRun, method: str, failing: str | None
) -> None:
    if failing is not None:
        run.services.errors[failing] = [REFUSED]
    run.journal.errors[method] = [DatabaseUnavailable()] * 3
    failure = None if failing is None else Failure.of(REFUSED)
    assert await run.first() == SagaEnd(ORDER, failure)
    assert (run.row.epoch, run.row.attempts) == (1, 0)


async def test_a_saga_is_left_if_the_outage_outlasts_the_lease(run: SagaRun) -> None:
    run.journal.errors["write"] = [DatabaseUnavailable()] * 1_000
    runner = run.runner(SagaLimits(lease_s=1.0))
    assert await run.start(runner) is None
    run.journal.errors.clear()
    await run.go_on()
    assert (run.row.state, run.row.epoch) == (SagaState.COMPLETED, 2)
    first, *rest = [step.name for step in PAY_ORDER.steps]
    assert run.services.calls == [first, first, *rest], "what had begun is repeated"


async def test_a_saga_that_cannot_be_closed_for_a_lease_counts_an_attempt(run: SagaRun) -> None:
    """Although its lease is renewed: only the order's row is held."""
    run.journal.errors["close"] = [DatabaseUnavailable()] * 1_000
    runner = run.runner(SagaLimits(lease_s=1.0))
    end = run.start(runner)
    while not end.done():
        await runner.beat()
        await asyncio.sleep(0.05)
    assert await end is None
    assert (run.row.attempts, run.row.waits) == (1, True)


async def test_a_heartbeat_stops_a_saga_whose_lease_is_lost(run: SagaRun) -> None:
    gate = run.services.hold(STEP)
    runner = run.runner()
    end = run.start(runner)
    await gate.reached()
    await runner.beat()
    assert not end.done()
    run.row.epoch += 1
    await runner.beat()
    await finish(runner)
    assert await end is None


async def test_a_renewal_that_waits_delays_no_other(run: SagaRun) -> None:
    """The saga's row may be locked for longer than a lease."""
    runner = run.runner(SagaLimits(lease_s=3.0, hand_over_s=0.0))
    held, released, renewed = SAGA_ID, asyncio.Event(), Counter[str]()
    renew = run.journal.renew

    async def wait_for_row(saga: Saga, *, lease_s: float) -> None:
        if saga.saga_id == held:
            await released.wait()
        await renew(saga, lease_s=lease_s)
        renewed[saga.saga_id] += 1

    run.journal.renew = wait_for_row  # type: ignore[method-assign]
    await filled(run, runner, 1)
    gate = run.services.hold("redeem_coupon")
    end = run.start(runner)
    await gate.reached()
    for _ in range(3):
        await runner.beat()
    assert renewed == {"1": 3}
    run.row.epoch += 1
    released.set()
    await asyncio.wait({end}, timeout=LONG_S)
    assert end.done(), "the late renewal finds that the saga is lost"
    await runner.hand_over()


async def test_a_saga_taken_over_by_its_own_replica_runs_once(run: SagaRun) -> None:
    gate = run.services.hold(STEP)
    runner = run.runner()
    before = run.start(runner)
    await gate.reached()
    assert await runner.sweep() == 1
    after = runner.end_of(SAGA_ID)
    assert after is not None
    await finish(runner)
    assert await before is None
    assert await after == SagaEnd(ORDER, None)
    assert run.order == "PAID"
    assert run.services.calls.count("confirm_payment") == 1


async def test_a_stopping_replica_ends_its_call_and_begins_no_other(run: SagaRun) -> None:
    gate = run.services.hold("redeem_coupon")
    runner = run.runner()
    end = run.start(runner)
    await gate.reached()
    stopping = asyncio.create_task(runner.hand_over())
    await asyncio.sleep(0)
    gate.open()
    await stopping
    assert await end is None
    assert run.services.calls == ["redeem_coupon"]
    assert run.row.step("redeem_coupon").state is StepState.DONE
    assert run.row.waits
    assert await runner.sweep() == 0
    assert (await run.run()).row.state is SagaState.COMPLETED


# -- capacity ------------------------------------------------------------------------------------


async def test_without_capacity_nothing_is_taken_over(run: SagaRun) -> None:
    runner = run.runner(SagaLimits(running_max=0))
    assert not has_capacity(runner, uses_gateway=True)
    assert await runner.sweep() == 0


def has_capacity(runner: Runner, *, uses_gateway: bool) -> bool:
    with runner.beginning(uses_gateway=uses_gateway) as found:
        return found


async def filled(run: SagaRun, runner: Runner, count: int, **fields: Any) -> None:
    """Start sagas that do not end."""
    for _ in range(count):
        saga = saga_of(PAY_ORDER, saga_id=f"{len(run.journal.rows)}", **fields)
        run.journal.add(saga)
        run.journal.rows[saga.saga_id].state = SagaState.NEEDS_ATTENTION
        gate = run.services.hold("redeem_coupon")
        runner.start(saga, NOW)
        await gate.reached()


async def test_new_sagas_leave_capacity_for_takeovers(run: SagaRun) -> None:
    runner = run.runner(SagaLimits(running_max=4, hand_over_s=0.0))
    await filled(run, runner, 2)
    assert has_capacity(runner, uses_gateway=True)
    await filled(run, runner, 1)
    assert not has_capacity(runner, uses_gateway=True)
    assert await runner.sweep() == 1
    await runner.hand_over()


async def test_sagas_that_are_being_begun_count(run: SagaRun) -> None:
    runner = run.runner(SagaLimits(running_max=4))
    with ExitStack() as stack:
        begun = [stack.enter_context(runner.beginning(uses_gateway=True)) for _ in range(40)]
    assert begun == [True] * 3 + [False] * 37
    assert has_capacity(runner, uses_gateway=True)


@pytest.mark.parametrize("gateway", [True, False])
async def test_a_full_bulkhead_refuses_no_saga_of_the_other(run: SagaRun, gateway: bool) -> None:
    asked = {True: pay_input(), False: pay_input(payment_key=None, balance_minor=None)}
    runner = run.runner(SagaLimits(running_max=4, hand_over_s=0.0))
    await filled(run, runner, 4, asked=asked[gateway])
    assert not has_capacity(runner, uses_gateway=gateway)
    assert has_capacity(runner, uses_gateway=not gateway)
    for each in (True, False):
        run.journal.add(saga_of(PAY_ORDER, asked[each], saga_id=f"due {each}"))
    run.journal.rows.pop(SAGA_ID)
    assert await runner.sweep() == 1
    assert runner.end_of(f"due {not gateway}") is not None
    await runner.hand_over()


async def test_retries_take_a_quarter_after_the_sagas_of_dead_replicas(run: SagaRun) -> None:
    runner = run.runner(SagaLimits(running_max=8, hand_over_s=0.0))
    run.services.hold("redeem_coupon")
    for number in range(4):
        run.journal.add(saga_of(PAY_ORDER, saga_id=f"failed {number}", attempts=1))
    assert await runner.sweep() == 3
    assert runner.end_of(SAGA_ID) is not None, "that of a dead replica"
    assert has_capacity(runner, uses_gateway=True)
    await runner.hand_over()
