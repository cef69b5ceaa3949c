"""The figures on active sagas: as the rows are, and none when they could not be read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from prometheus_client import generate_latest

from common.errors import DatabaseUnavailable
from common.metrics import REGISTRY
from order_service.model.saga import SagaState
from order_service.saga.plan import CANCEL_ORDER
from order_service.store.figures import ACTIVE_SAGAS
from tests.support.saga_rows import Sagas
from tests.support.sagas import CANCEL_INPUT


def exported() -> dict[str, float]:
    """The samples on the page of metrics."""
    lines = generate_latest(REGISTRY).decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line.startswith("tally_active_sagas"))
    return {name: float(value) for name, value in samples}


def sample(kind: str, state: str, suffix: str = "") -> str:
    return f'tally_active_sagas{suffix}{{kind="{kind}",state="{state}"}}'


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
