"""Lanes of one kind side by side: while one commits its batch, another decides the next.

A lane has one batch in flight, so that a replica waits for PostgreSQL while it could decide, and
the other way round. In a group each command goes to the lane of its key, always the same one. If
all commands that want a row have one key, no batch of the group waits for another's rows. Should
two of them ever want the same row, they are to each other what the lanes of two replicas are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

from common.batching.lane import Lane
from common.batching.lane_metrics import LaneMetrics

C = TypeVar("C")
R = TypeVar("R")

SIZE: Final = 2
"""Lanes of a group: one decides while the other one waits for PostgreSQL. With more, batches become
smaller, and the interpreter has no time left for them."""


class LaneGroup(Generic[C, R]):
    """The lanes of all writes of one kind of aggregate, if no command needs two keys."""

    def __init__(
        self,
        name: str,
        open_lane: Callable[[LaneMetrics[C, R]], Lane[C, R]],
        key_of: Callable[[C], Hashable],
    ) -> None:
        """``open_lane``: makes one of the lanes, all of which have this name and these metrics.

        ``key_of``: the key of a command; commands of one key are decided in order of arrival.
        """
        self._key_of = key_of
        metrics: LaneMetrics[C, R] = LaneMetrics(name, lambda: sum(one.depth for one in self.lanes))
        self.lanes: Final = [open_lane(metrics) for _ in range(SIZE)]

    async def submit(self, command: C) -> R:
        """As ``Lane.submit``."""
        return await self.lanes[self._lane_of(command)].submit(command)

    async def submit_bulk(self, commands: Sequence[C]) -> list[R | Exception]:
        """As ``Lane.submit_bulk``."""
        parts: list[list[C]] = [[] for _ in self.lanes]
        places: list[tuple[int, int]] = []
        for command in commands:
            at = self._lane_of(command)
            places.append((at, len(parts[at])))
            parts[at].append(command)
        outcomes = await asyncio.gather(
            *(lane.submit_bulk(part) for lane, part in zip(self.lanes, parts, strict=True))
        )
        return [outcomes[at][position] for at, position in places]

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await asyncio.gather(*(lane.close() for lane in self.lanes))

    def _lane_of(self, command: C) -> int:
        return hash(self._key_of(command)) % len(self.lanes)
