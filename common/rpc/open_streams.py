"""The response streams that are open, each of which its server can end with a status."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import Refusal
from common.identity.caller import Caller
from common.identity.errors import TokenExpired


class OpenStreams:
    """The tasks of the streams of one server."""

    def __init__(self) -> None:
        self._endings: dict[asyncio.Task[object], Refusal | None] = {}
        """Why the server ends each; None while it does not."""
        self.closed: Refusal | None = None
        """The status of streams that are opened from now on; None while they may be."""

    def add(self) -> asyncio.Task[object]:
        """The running task, as that of an open stream."""
        task = asyncio.current_task()
        assert task is not None, "gRPC runs each call in a task"
        self._endings[task] = None
        return task

    def remove(self, task: asyncio.Task[object]) -> None:
        """Forget a stream that has ended."""
        del self._endings[task]

    def ending(self, task: asyncio.Task[object]) -> Refusal | None:
        """The status with which the server has ended the stream; None if it has not."""
        return self._endings[task]

    def end(self, task: asyncio.Task[object], refusal: Refusal) -> None:
        """End the stream of the task with this status, if it is open."""
        if task in self._endings:
            self._endings[task] = refusal
            task.cancel()

    def end_all(self, refusal: Refusal) -> None:
        """End every open stream with this status, and every one that is opened from now on."""
        self.closed = refusal
        for task in self._endings:
            self.end(task, refusal)

    @contextmanager
    def ended_with_token(self, caller: Caller | None) -> Iterator[None]:
        """End the stream of the running task with TokenExpired when its caller's token expires.

        That of a certificate ends with its connection.
        """
        if caller is None or math.isinf(caller.until_s):
            yield
            return
        task = asyncio.current_task()
        assert task is not None, "gRPC runs each call in a task"
        left_s = caller.until_s - time.monotonic()
        timer = asyncio.get_running_loop().call_later(left_s, self.end, task, TokenExpired())
        try:
            yield
        finally:
            timer.cancel()
