"""The figures on active sagas: as the rows are, and none when they could not be read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from prometheus_client import generate_latest

from common.errors import DatabaseUnavailable
from common.metrics import REGISTRY
from order_service.model.saga import Saga, SagaState
from order_service.model.saga_input import StepResults
from order_service.saga.plan import CANCEL_ORDER, PAY_ORDER, Plan
from order_service.store.figures import ACTIVE_SAGAS
from tests.support.saga_rows import Sagas
from tests.support.sagas import CANCEL_INPUT, NOW


def exported() -> dict[str, float]:
    """The samples on the page of metrics."""
    lines = generate_latest(REGISTRY).decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line.startswith("tally_active_"))
    return {name: float(value) for name, value in samples}


def sample(kind: str, state: str, suffix: str = "") -> str:
    return f'tally_active_sagas{suffix}{{kind="{kind}",state="{state}"}}'


def open_undo(kind: str, suffix: str = "") -> str:
    return f'tally_active_failed_compensations{suffix}{{kind="{kind}"}}'


async def test_sagas_are_counted_by_kind_and_state_and_the_ended_are_not(sagas: Sagas) -> None:
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    await sagas.add(create_time=hour_ago)
    await sagas.add()
    await sagas.add(state=SagaState.NEEDS_ATTENTION)
    await sagas.add(CANCEL_ORDER, CANCEL_INPUT)
    await sagas.close(await sagas.add())
    await ACTIVE_SAGAS.refresh(sagas.database)
    found = exported()
    assert found[sample("PAY_ORDER", "RUNNING")] == 2
    assert found[sample("PAY_ORDER", "NEEDS_ATTENTION")] == 1
    assert found[sample("CANCEL_ORDER", "RUNNING")] == 1
    assert found[sample("CANCEL_ORDER", "RESOLVING")] == 0, "an alert needs a sample"
    assert 3_600 <= found[sample("PAY_ORDER", "RUNNING", "_oldest_seconds")] < 7_200


def ago(hours: float) -> datetime:
    return datetime.now(UTC) - timedelta(hours=hours)


async def failed(sagas: Sagas, plan: Plan, name: str, *, undo: bool, since: datetime = NOW) -> Saga:
    """A saga of which a step, or the undo of one, has failed twice and waits."""
    asked = CANCEL_INPUT if plan is CANCEL_ORDER else None
    saga = await sagas.add(plan, asked, create_time=ago(9))
    step = saga.step(name)
    saga.begin(step, NOW)
    if undo:
        step.postpone("UNAVAILABLE", ago(8), NOW, "coupon")
        saga.begin_undo(step)
    step.postpone("UNAVAILABLE", since, NOW, "coupon")
    step.postpone("UNAVAILABLE", datetime.now(UTC), NOW, "coupon")
    saga.wait("UNAVAILABLE", ["coupon"])
    await sagas.one.write(saga, lease_s=60)
    return saga


async def test_sagas_whose_compensation_failed_are_counted_until_it_is_done(sagas: Sagas) -> None:
    undo = await failed(sagas, PAY_ORDER, "redeem_coupon", undo=True)
    await failed(sagas, PAY_ORDER, "confirm_payment", undo=False)
    cancellation = await failed(sagas, CANCEL_ORDER, "cancel_payment", undo=False)
    other = await sagas.add()
    other.begin_undo(other.steps[0])
    await sagas.one.write(other, lease_s=60)
    await ACTIVE_SAGAS.refresh(sagas.database)
    assert (exported()[open_undo("PAY_ORDER")], exported()[open_undo("CANCEL_ORDER")]) == (1, 1)
    undo.compensate(undo.step("redeem_coupon"), NOW)
    cancellation.complete(cancellation.step("cancel_payment"), StepResults(), NOW)
    for saga in (undo, cancellation):
        await sagas.one.write(saga, lease_s=60)
    await ACTIVE_SAGAS.refresh(sagas.database)
    assert (exported()[open_undo("PAY_ORDER")], exported()[open_undo("CANCEL_ORDER")]) == (0, 0)


async def test_age_of_a_failed_compensation_is_that_of_its_first_failure(sagas: Sagas) -> None:
    """Not that of the saga, nor of its step, nor of the last attempt."""
    await failed(sagas, PAY_ORDER, "redeem_coupon", undo=True, since=ago(2))
    await failed(sagas, PAY_ORDER, "redeem_coupon", undo=True, since=ago(1))
    await failed(sagas, CANCEL_ORDER, "cancel_payment", undo=False, since=ago(4))
    await ACTIVE_SAGAS.refresh(sagas.database)
    found = exported()
    assert 2 * 3_600 <= found[open_undo("PAY_ORDER", "_oldest_seconds")] < 3 * 3_600
    assert 4 * 3_600 <= found[open_undo("CANCEL_ORDER", "_oldest_seconds")] < 5 * 3_600


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param("steps #- '{0,first_failure_time}'", id="of an earlier release"),
        pytest.param(
            "jsonb_set(steps, '{0,first_failure_time}', '\"soon\"')", id="that is no time"
        ),
        pytest.param("jsonb_set(steps, '{0,first_failure_time}', '{}')", id="of another type"),
    ],
)
async def test_failure_without_a_readable_time_counts_from_the_saga(
    sagas: Sagas, steps: str
) -> None:
    await failed(sagas, PAY_ORDER, "redeem_coupon", undo=True)
    async with sagas.database.begin() as connection:
        await connection.execute(sa.text(f"UPDATE sagas SET steps = {steps}"))
    await ACTIVE_SAGAS.refresh(sagas.database)
    found = exported()
    assert found[open_undo("PAY_ORDER")] == 1
    assert 9 * 3_600 <= found[open_undo("PAY_ORDER", "_oldest_seconds")] < 10 * 3_600


async def test_after_a_failed_read_no_figures_are_exported(
    sagas: Sagas, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ACTIVE_SAGAS.refresh(sagas.database)
    assert exported()
    with monkeypatch.context() as patch:
        patch.setattr(
            ACTIVE_SAGAS,
            "_statement",
            sa.select(sa.func.pg_terminate_backend(sa.func.pg_backend_pid())),
        )
        with pytest.raises(DatabaseUnavailable):
            await ACTIVE_SAGAS.refresh(sagas.database)
    assert exported() == {}
    await ACTIVE_SAGAS.refresh(sagas.database)
    assert exported()
