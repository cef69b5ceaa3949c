"""Single reads, gathered: while one statement is under way, whoever else asks waits for the next.

A read that every call makes before its write would otherwise take a pooled connection per call, and
a crowd of such calls would stand in line before the very lane they are meant to spare.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from common.database import Database, reading
from common.errors import DatabaseUnavailable

K = TypeVar("K")
V = TypeVar("V")

BATCH_MAX: Final = 256
TRIES_MAX: Final = 3


class Gathered(Generic[K, V]):
    """One kind of read in this replica. Each answer was read after its question was asked."""

    def __init__(
        self,
        database: Database,
        read: Callable[[AsyncConnection, Sequence[K]], Awaitable[Sequence[V]]],
    ) -> None:
        """``read`` answers a batch of questions, in their order, in one statement."""
        self._database = database
        self._read = read
        self._asked: deque[tuple[K, asyncio.Future[V]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def get(self, question: K) -> V:
        """The answer. Raises DatabaseUnavailable."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[V] = loop.create_future()
        self._asked.append((question, answer))
        if self._task is None:
            # In a context of its own: the task outlives the call that happened to start it.
            self._task = loop.create_task(self._run(), context=contextvars.Context())
        return await answer

    async def close(self) -> None:
        """Wait until nothing is being read any more."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while self._asked:
            size = min(len(self._asked), BATCH_MAX)
            batch = [self._asked.popleft() for _ in range(size)]
            batch = [(question, answer) for question, answer in batch if not answer.done()]
            if not batch:
                continue
            try:
                answers = await self._try([question for question, _ in batch])
            except Exception as error:  # noqa: BLE001 - each of those who asked is told
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), told in zip(batch, answers, strict=True):
                if not answer.done():
                    answer.set_result(told)
        self._task = None

    async def _try(self, questions: Sequence[K]) -> Sequence[V]:
        """A read changes nothing: where only the connection was lost it is made again."""
        for left in reversed(range(TRIES_MAX)):
            try:
                async with reading(self._database) as connection:
                    answers = await self._read(connection, questions)
            except DatabaseUnavailable:
                if not left:
                    raise
            else:
                assert len(answers) == len(questions), "one answer per question"
                return answers
        raise AssertionError("the last try returns or raises")
