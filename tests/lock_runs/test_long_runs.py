"""A million handoffs between the tasks of four processes: no two hold the lock at once."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from common.ids import new_id
from common.locking.key_scripts import TURNS_MAX
from deploy.local.valkey import ValkeyServer
from tests.integration.locking.worker import Held, Work
from tests.support.lock_workers import ended, overlaps, worker

PROCESSES = 4
TASKS = 25
ACQUISITIONS = 1_000
"""Of each task in a run: 100,000 in all."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("run", range(10))
async def test_a_hundred_thousand_handoffs_exclude_and_are_fair(
    valkey_server: ValkeyServer, run: int
) -> None:
    work = Work(valkey_server.url, f"lock:{new_id()}", ACQUISITIONS, tasks=TASKS)
    async with AsyncExitStack() as exits:
        contexts = [worker(work) for _ in range(PROCESSES)]
        running = await asyncio.gather(*map(exits.enter_async_context, contexts))
        await asyncio.gather(*map(ended, running))
    held = sorted((one for each in running for one in each.held), key=lambda one: one.began)
    assert len(held) == PROCESSES * TASKS * ACQUISITIONS
    assert overlaps(held) == []
    fences = [one.fence for one in held]
    assert fences == sorted(set(fences))
    contended = while_all_want_it(held)
    assert jain(list(Counter(one.pid for one in contended).values())) >= 0.99
    turns = [len(list(group)) for _, group in itertools.groupby(contended, lambda one: one.pid)]
    # The last may be cut off; the first waits for the others to begin.
    assert max(turns[1:-1]) <= TURNS_MAX


def while_all_want_it(held: Sequence[Held]) -> Sequence[Held]:
    """What was held after the last process began and before the first one ended."""
    of_process = [[one for one in held if one.pid == pid] for pid in {one.pid for one in held}]
    began = max(each[0].began for each in of_process)
    ended_at = min(each[-TASKS].began for each in of_process)
    return [one for one in held if began <= one.began <= ended_at]


def jain(counts: Sequence[int]) -> float:
    """Jain's index of fairness: 1 if all are equal."""
    return sum(counts) ** 2 / (len(counts) * sum(count**2 for count in counts))
