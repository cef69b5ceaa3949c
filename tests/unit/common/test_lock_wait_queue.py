"""Which rows commands wait for, as later batches see it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable
from unittest.mock import Mock

from common.batching.lock_wait_queue import LockWaitQueue
from common.batching.outcomes import Limits, QueuedCommand
from common.db.database import open_pools


def queued(number: int, weight: int = 1) -> QueuedCommand[int, int]:
    return QueuedCommand(number, Mock(), Mock(), None, (), rounds_max=1, weight=weight)


async def test_a_row_is_held_again_when_it_is_locked_again() -> None:
    """A command of its key would delay each batch that it enters."""
    database = open_pools("postgresql://u:p@127.0.0.1/db", application_name="t", pool_size=3)
    held: list[tuple[int, bool]] = []
    tasks: list[asyncio.Task[None]] = []

    async def decide(row: Hashable, entries: list[QueuedCommand[int, int]]) -> None:
        (entry,) = entries
        held.append((entry.command, waiting.is_held(row)))
        if len(held) == 2:
            waiting.wait(entry, row)  # another transaction has locked the row meanwhile
        else:
            entry.left = True

    def spawn(work: Coroutine[None, None, None]) -> None:
        tasks.append(asyncio.ensure_future(work))

    waiting = LockWaitQueue(decide, Mock(), spawn, Limits(batch_max=1), database)
    for number in (1, 2):
        waiting.wait(queued(number), "row")
    await asyncio.gather(*tasks)
    assert held == [(1, True), (2, False), (2, True)]
    assert not waiting.has_held
    await database.close()


async def test_commands_that_wait_for_a_row_are_decided_up_to_a_weight() -> None:
    """A few of them would fill a statement alone, as in a lane's batch."""
    database = open_pools("postgresql://u:p@127.0.0.1/db", application_name="t", pool_size=3)
    sizes: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def decide(_row: Hashable, entries: list[QueuedCommand[int, int]]) -> None:
        sizes.append(len(entries))
        for entry in entries:
            entry.left = True

    def spawn(work: Coroutine[None, None, None]) -> None:
        tasks.append(asyncio.ensure_future(work))

    waiting = LockWaitQueue(decide, Mock(), spawn, Limits(), database)
    for number in range(12):
        waiting.wait(queued(number, 1_000), "row")
    await asyncio.gather(*tasks)
    assert sizes == [5, 5, 2]
    await database.close()
