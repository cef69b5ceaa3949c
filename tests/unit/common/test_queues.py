"""How long a lane waits for a batch, and which of the commands that wait are in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from unittest.mock import Mock

import pytest

from common.batching.outcomes import Limits, QueuedCommand
from common.batching.queues import Queues


def queued(weights: Iterable[int]) -> list[QueuedCommand[int, int]]:
    return [QueuedCommand(one, Mock(), Mock(), None, (), 1, weight=one) for one in weights]


def batches(queues: Queues[int, int], count: int) -> list[list[int]]:
    return [
        [entry.command for entry in queues.next_batch(lambda _entry: True)] for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("weights", "sizes"),
    [
        ([1] * 300, [256, 44]),
        ([1_000] * 12, [5, 5, 2]),
        ([100] * 50, [41, 9]),
        ([5_000, 1], [1, 1]),
    ],
    ids=["plain", "heavy", "lighter", "heavier-than-a-batch"],
)
def test_a_batch_ends_at_its_size_or_weight(weights: list[int], sizes: list[int]) -> None:
    queues: Queues[int, int] = Queues(256)
    for entry in queued(weights):
        queues.append(entry)
    assert [len(batch) for batch in batches(queues, len(sizes))] == sizes
    assert not queues


def test_heavy_commands_of_busy_keys_leave_half_of_a_batch_to_others() -> None:
    queues: Queues[int, int] = Queues(256)
    queues.set_aside(queued([1_000] * 6))
    for entry in queued([1] * 10):
        queues.append(entry)
    assert batches(queues, 2) == [[*[1_000] * 3, *[1] * 10, *[1_000] * 2], [1_000]]


@pytest.mark.parametrize(
    ("single", "bulk", "expected"),
    [
        ([1_000] * 9, [1_000] * 9, [6, 6, 6]),
        ([1_000] * 9, [1] * 3, [3 + 3, 5, 1]),
        ([], [1_000] * 9, [5, 4]),
        ([1], [1_000] * 9, [1 + 3, 5, 1]),
    ],
    ids=["both", "few-bulk-items", "bulk-items-alone", "one-single-call"],
)
def test_bulk_items_weigh_at_most_half_of_a_batch_while_single_calls_wait(
    single: list[int], bulk: list[int], expected: list[int]
) -> None:
    queues: Queues[int, int] = Queues(256)
    for entry in queued(single):
        queues.append(entry)
    for entry in queued(bulk):
        entry.bulk = True
        queues.append(entry)
    assert [len(batch) for batch in batches(queues, len(expected))] == expected
    assert not queues


@pytest.mark.parametrize(
    ("waiting", "arrivals", "waits"),
    [
        (7, [], 0),
        (8, [1, 1, 1, 1], 1),
        (8, [4, 5, 3, 9], 3),
        (8, [9] * 20, 10),
        (250, [9, 9], 1),
    ],
    ids=["short", "one-by-one", "while-many-come", "at-most-ten", "until-the-batch-is-full"],
)
async def test_a_lane_lingers_while_many_commands_come(
    waiting: int, arrivals: list[int], waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queues: Queues[int, int] = Queues(256)
    waited = 0

    def arrive(count: int) -> None:
        for entry in queued([1] * count):
            queues.append(entry)

    async def sleep(_seconds: float) -> None:
        nonlocal waited
        arrive(arrivals[waited])
        waited += 1

    arrive(waiting)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await queues.linger(Limits())
    assert waited == waits
