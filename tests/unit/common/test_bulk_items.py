"""Bulk methods: what their items count for, and what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from structlog.testing import capture_logs

from common.errors import ConflictRetriesExhausted, InvalidField, Overloaded
from common.metrics import REGISTRY
from common.rpc.bulk import bulk, decide_items, is_bulk
from common.rpc.concurrency import ConcurrencyLimit
from tests.support.refusals import reason_of

METHOD = "/tally.test.v1.BulkService/Bulk"


@pytest.mark.parametrize(
    ("slots", "calls"),
    [
        pytest.param(1_024, [1_000] * 4, id="four thousands have half of the slots"),
        pytest.param(1_024, [128] * 4, id="a chunk counts as much as a thousand"),
        pytest.param(1_024, [10] * 51, id="few items count as so many calls"),
        pytest.param(64, [1_000], id="one call never has more than half"),
        pytest.param(1, [5], id="one slot is enough for one call"),
    ],
)
def test_items_count_up_to_half_of_the_slots(slots: int, calls: list[int]) -> None:
    limit = ConcurrencyLimit(slots)
    with ExitStack() as running:
        for items in calls:
            limit.running += 1  # as the handler does for any call
            running.enter_context(limit.bulk(items))
            running.callback(lambda: setattr(limit, "running", limit.running - 1))
        assert limit.running <= max(1, slots // 2)
        limit.running += 1
        with pytest.raises(Overloaded), limit.bulk(calls[0]):
            pass
        limit.running -= 1
    assert (limit.running, limit.of_bulk_calls) == (0, 0)


def test_a_bulk_call_does_not_exceed_the_slots_that_single_calls_leave() -> None:
    limit = ConcurrencyLimit(100, running=96)
    with limit.bulk(5):
        assert limit.running == 100
    with pytest.raises(Overloaded), limit.bulk(6):
        pass


def test_a_marked_method_is_a_bulk_method() -> None:
    class Servicer:
        @bulk
        async def many(self) -> None: ...

        async def one(self) -> None: ...

    assert is_bulk(Servicer().many)
    assert not is_bulk(Servicer().one)


async def test_every_item_has_its_result_in_its_place() -> None:
    """Valid ones those of the write; the others their refusal; a defect an id for the log."""

    def command_of(item: int) -> int:
        if item % 10 == 3:
            raise InvalidField("number", "is not valid")
        return item

    async def write(commands: Sequence[int]) -> list[int | Exception]:
        assert [number % 10 for number in commands].count(3) == 0
        failed = {5: ConflictRetriesExhausted(), 7: ZeroDivisionError("secret")}
        return [failed.get(command, -command) for command in commands]

    results: list[str] = []

    def add_result(outcome: int | Status) -> None:
        results.append(reason_of(outcome) if isinstance(outcome, Status) else str(outcome))

    ends = {
        ("OK", ""): 898,
        ("INVALID_ARGUMENT", "INVALID_FIELD"): 100,
        ("ABORTED", "CONFLICT_RETRIES_EXHAUSTED"): 1,
        ("INTERNAL", "INTERNAL"): 1,
    }

    def items(code: str, reason: str) -> float:
        labels = {"method": METHOD, "code": code, "reason": reason}
        return REGISTRY.get_sample_value("tally_bulk_items_total", labels) or 0

    counted = {end: items(*end) for end in ends}
    with capture_logs() as logs:
        await decide_items(METHOD, range(1_000), command_of, write, add_result)
    expected = [str(-n) if n % 10 != 3 else "INVALID_FIELD" for n in range(1_000)]
    expected[0] = "0"
    expected[5], expected[7] = "CONFLICT_RETRIES_EXHAUSTED", "INTERNAL"
    assert results == expected
    assert [line["method"] for line in logs] == [METHOD]
    assert {end: items(*end) - counted[end] for end in ends} == ends


async def test_without_a_valid_item_nothing_is_written() -> None:
    def command_of(item: int) -> int:
        raise InvalidField("number", "is not valid")

    async def write(commands: Sequence[int]) -> list[int | Exception]:
        raise AssertionError("called without commands")

    results: list[int | Status] = []
    await decide_items(METHOD, [1, 2], command_of, write, results.append)
    assert [reason_of(status) for status in results] == ["INVALID_FIELD"] * 2
