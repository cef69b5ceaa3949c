"""The commands of a lane that wait for a batch, and which of them the next batch takes.

Single calls and bulk calls wait apart. A single call that arrives while a batch of bulk items runs
waits for that batch; of each further batch, bulk items take at most half while single calls wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from common.batching.outcomes import Limits, QueuedCommand

C = TypeVar("C")
R = TypeVar("R")

WEIGHT_MAX: Final = 4_096
"""A batch ends when its commands weigh so much (``QueuedCommand.weight``): most weigh 1, and a few
would fill a script of Redis or a statement alone."""


def fill(
    taken: list[QueuedCommand[C, R]],
    queue: deque[QueuedCommand[C, R]],
    size_max: int,
    weight_max: int,
    admit: Callable[[QueuedCommand[C, R]], bool] = lambda _entry: True,
) -> None:
    """Move what ``admit`` lets pass from the queue's front, until ``taken`` is so long or heavy."""
    weight = sum(entry.weight for entry in taken)
    while queue and len(taken) < size_max and weight < weight_max:
        entry = queue.popleft()
        if admit(entry):
            taken.append(entry)
            weight += entry.weight


class Queues(Generic[C, R]):
    """The waiting commands of one lane."""

    def __init__(self, batch_max: int) -> None:
        self._batch_max = batch_max
        self._single: _Queue[C, R] = _Queue()
        self._bulk: _Queue[C, R] = _Queue()

    def __bool__(self) -> bool:
        return len(self._single) + len(self._bulk) > 0

    @property
    def arrived(self) -> int:
        """How many commands wait for their first batch."""
        return len(self._single.arrived) + len(self._bulk.arrived)

    def append(self, entry: QueuedCommand[C, R]) -> None:
        self._of(entry).arrived.append(entry)

    def set_aside(self, entries: Sequence[QueuedCommand[C, R]]) -> None:
        """Keep entries whose Redis lock is busy for a later batch, before all others."""
        for entry in reversed(entries):
            self._of(entry).busy.appendleft(entry)

    async def linger(self, limits: Limits) -> None:
        """Wait a millisecond at a time while many commands wait, and many more come.

        Calls that have arrived at this process take turns with the batches for the interpreter. A
        batch costs about the same with ten commands as with a hundred. A short queue never waits.
        One that calls join one by one, as they arrive, waits once.
        """
        for _ in range(limits.linger_max):
            before = self.arrived
            if not limits.linger_from <= before < limits.batch_max:
                return
            await asyncio.sleep(limits.linger_s)
            if self.arrived < before + limits.linger_gain:
                return

    def next_batch(self, admit: Callable[[QueuedCommand[C, R]], bool]) -> list[QueuedCommand[C, R]]:
        """All that ``admit`` lets pass, up to the limits; what it does not has left the lane.

        Bulk calls get at most half of a batch that has commands of single calls, and at least half
        of any batch if they need it.
        """
        size_max, bulk = self._batch_max, len(self._bulk)
        half, half_weight = size_max // 2, WEIGHT_MAX // 2
        weight_max = half_weight if bulk else WEIGHT_MAX
        batch = self._single.take(size_max - min(half, bulk), weight_max, admit)
        if batch:
            return batch + self._bulk.take(half, half_weight, admit)
        return self._bulk.take(size_max, WEIGHT_MAX, admit)

    def clear(self) -> list[QueuedCommand[C, R]]:
        """Empty the queues; returns what they had."""
        return self._single.clear() + self._bulk.clear()

    def _of(self, entry: QueuedCommand[C, R]) -> _Queue[C, R]:
        return self._bulk if entry.bulk else self._single


class _Queue(Generic[C, R]):
    """Commands in order of arrival, and those of them whose Redis lock was busy."""

    def __init__(self) -> None:
        self.arrived: deque[QueuedCommand[C, R]] = deque()
        self.busy: deque[QueuedCommand[C, R]] = deque()

    def __len__(self) -> int:
        return len(self.arrived) + len(self.busy)

    def take(
        self, size_max: int, weight_max: int, admit: Callable[[QueuedCommand[C, R]], bool]
    ) -> list[QueuedCommand[C, R]]:
        """Commands of busy keys come first, but in at most half of a batch while others wait.

        Many commands of one busy key must not keep out all others.
        """
        taken: list[QueuedCommand[C, R]] = []
        for queue, size, weight in (
            (self.busy, size_max // 2, weight_max // 2),
            (self.arrived, size_max, weight_max),
            (self.busy, size_max, weight_max),
        ):
            fill(taken, queue, size, weight, admit)
        return taken

    def clear(self) -> list[QueuedCommand[C, R]]:
        entries = [*self.busy, *self.arrived]
        self.busy.clear()
        self.arrived.clear()
        return entries
