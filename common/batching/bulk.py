"""Bulk calls: many commands of one call in a lane, each decided by itself.

They enter the lane in chunks, as places for them become free: a lane that is full of bulk calls
makes the next one wait instead of refusing it, until shortly before its deadline. One reply per
chunk wakes the call, not one per command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

from common import deadlines
from common.batching.outcomes import Limits, Reply
from common.errors import RequestInProgress

C = TypeVar("C")
R = TypeVar("R")

RETURN_S: Final = 0.25
"""How long before its deadline a bulk call returns: time to build and send a thousand results. If
the call has less than four times as much to begin with, a quarter of what it has."""


Enter: TypeAlias = Callable[[C, Reply[R], Callable[[], None]], None]
"""Queues one command of a bulk call: the command, its reply, and what is called when it leaves the
lane. Raises Overloaded if the lane is closed."""


class BulkCalls(Generic[C, R]):
    """The bulk calls of one lane, and the places that they share."""

    def __init__(self, enter: Enter[C, R], limits: Limits) -> None:
        self._enter = enter
        self._chunk_max = limits.chunk_max
        # In the order in which calls have asked for them.
        self._places = asyncio.Semaphore(max(1, limits.bulk_depth_max // limits.chunk_max))

    async def submit(self, commands: Sequence[C]) -> list[R | Exception]:
        """The outcome of each command, in their order: its result, or the exception of a single
        call.

        Returns shortly before the running call's deadline. Commands that are not decided then have
        RequestInProgress: those in a batch are still decided, the others never.

        Raises Overloaded if the lane is closed.
        """
        chunks: list[_Chunk[R]] = []
        left_s = deadlines.remaining()
        try:
            async with asyncio.timeout(None if left_s is None else decided_within_s(left_s)):
                for first in range(0, len(commands), self._chunk_max):
                    await self._places.acquire()
                    part = commands[first : first + self._chunk_max]
                    chunk: _Chunk[R] = _Chunk(len(part), self._places.release)
                    chunks.append(chunk)
                    self._enter_chunk(chunk, part)
                    # Other calls have their turn, and may enter between two chunks.
                    await asyncio.sleep(0)
                for each in chunks:
                    await each.decided.wait()
        except TimeoutError:
            pass  # what is not decided has no outcome
        finally:
            for each in chunks:
                each.close()
        outcomes = [outcome for each in chunks for outcome in each.outcomes]
        outcomes += [None] * (len(commands) - len(outcomes))
        undecided = RequestInProgress()
        return [undecided if outcome is None else outcome for outcome in outcomes]

    def _enter_chunk(self, chunk: _Chunk[R], commands: Sequence[C]) -> None:
        for position, command in enumerate(commands):
            try:
                self._enter(command, _ItemReply(chunk, position), chunk.leave)
            except BaseException:
                # Those that did not enter leave the place, so that it becomes free again.
                for _ in commands[position:]:
                    chunk.leave()
                raise


def decided_within_s(left_s: float) -> float:
    """How long a call waits for its commands if its deadline is in ``left_s`` seconds."""
    return left_s - min(RETURN_S, left_s / 4)


class _Chunk(Generic[R]):
    """Commands that entered the lane together, and their outcomes so far."""

    def __init__(self, size: int, free: Callable[[], None]) -> None:
        """``free``: called when all of them have left the lane."""
        self.outcomes: list[R | Exception | None] = [None] * size
        self.decided = asyncio.Event()
        self.closed = False
        self._undecided = self._inside = size
        self._free = free

    def decide(self, position: int, outcome: R | Exception) -> None:
        self.outcomes[position] = outcome
        self._undecided -= 1
        if not self._undecided:
            self.decided.set()

    def leave(self) -> None:
        """One of them has left the lane."""
        self._inside -= 1
        if not self._inside:
            self._free()

    def close(self) -> None:
        """The call waits no longer; what is not in a batch is not decided any more."""
        self.closed = True


class _ItemReply(Generic[R]):
    """The reply to one command of a chunk."""

    __slots__ = ("_chunk", "_position")

    def __init__(self, chunk: _Chunk[R], position: int) -> None:
        self._chunk = chunk
        self._position = position

    def done(self) -> bool:
        return self._chunk.closed or self._chunk.outcomes[self._position] is not None

    def set_result(self, result: R) -> None:
        self._chunk.decide(self._position, result)

    def set_exception(self, exception: Exception) -> None:
        self._chunk.decide(self._position, exception)
