"""Work that goes on when the call that began it has gone: a caller may stop waiting, not the work.

Each piece runs in a task of its own and in a context of its own, so that it carries neither the
caller's deadline nor its cancellation. It stays in the caller's trace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from common import tracing
from common.errors import Refusal

T = TypeVar("T")
_log = structlog.stdlib.get_logger()


class Detached:
    """The detached work of one part of a service."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._context = tracing.own_context()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``work`` to its end. Wait for the task with ``outcome_of``, or not at all."""
        task = asyncio.get_running_loop().create_task(work, context=self._context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self, limit_s: float) -> None:
        """Wait for what runs, and for what that begins, ``limit_s`` at most; then cancel it."""
        try:
            async with asyncio.timeout(limit_s):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))
        except TimeoutError:
            _log.warning("detached_work_cut_off", work=self._name, tasks=len(self._tasks))
        while self._tasks:
            running = set(self._tasks)
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Refusal):
            _log.error("detached_work_failed", work=self._name, exc_info=error)


async def outcome_of(task: asyncio.Task[T]) -> T:
    """The task's result; if the caller is cancelled, the task goes on."""
    await asyncio.wait({task})
    return task.result()


async def ended(task: asyncio.Task[Any], limit_s: float) -> bool:
    """Whether the task ends within ``limit_s``, whatever its result; it goes on if it does not."""
    done, _ = await asyncio.wait({task}, timeout=max(0.0, limit_s))
    return bool(done)
