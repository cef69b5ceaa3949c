"""What is counted of a sweep that is cut off."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import Mock, sentinel

import pytest

from common.errors import DatabaseUnavailable
from common.metrics import REGISTRY
from order_service.saga.runner import Runner
from order_service.store.journal import TakenOver
from tests.support.sagas import NOW


class Journal:
    """Takes over a full batch; then the database is away."""

    def __init__(self) -> None:
        self.batches = [TakenOver([sentinel.died, sentinel.waited], NOW, expired=1, full=True)]

    async def take_over(self, **_: Any) -> TakenOver:
        if not self.batches:
            raise DatabaseUnavailable
        return self.batches.pop()


def takeovers(cause: str) -> float:
    return REGISTRY.get_sample_value("tally_saga_takeovers_total", {"cause": cause}) or 0.0


async def test_takeovers_of_a_batch_count_if_the_next_one_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = Runner(sentinel.services, cast(Any, Journal()))
    start = Mock()
    monkeypatch.setattr(runner, "start", start)
    before = takeovers("expired"), takeovers("due")
    with pytest.raises(DatabaseUnavailable):
        await runner.sweep()
    assert start.call_count == 2
    assert (takeovers("expired") - before[0], takeovers("due") - before[1]) == (1, 1)
