"""Calls of one request that arrive at one replica together: one of them works, the others join.

However many duplicates arrive, the replica decides the request once and watches its payment once.
Without that, each of them would take its turn at a transaction of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Final

from common import deadlines
from common.batching.loader import BatchLoader, load_by_id
from common.errors import DeadlineTooShort, RequestInProgress
from common.request_key import RequestKey, Result
from common.tasks import DetachedTasks, finished_within, result_of
from payment_service.model.confirmation import Confirmation
from payment_service.use_cases.decider import Posted

WAIT_S_MAX: Final = 5.0
"""How long a call waits for the work that another one has started."""
MARGIN_S: Final = 0.1
"""The part of a deadline kept to reply that the wait had no result."""
_LEAST_S: Final = 0.02
_POLL_S: Final = 0.01
_POLL_S_MAX: Final = 0.2

Outcome = Posted | Confirmation
"""The response of a call; or its payment, if another call works on that."""
SameCall = tuple[RequestKey, bytes, bool]
"""What calls have in common that join: the request, its digest, and ``record_only``."""


class JoinedCalls:
    """The calls of one replica, of which one works for each request."""

    def __init__(
        self, payments: BatchLoader[str, Confirmation | None], tasks: DetachedTasks
    ) -> None:
        """``payments``: reads them. ``tasks``: where the work runs, detached from its callers."""
        self._payments = payments
        self._tasks = tasks
        self._running: dict[SameCall, asyncio.Task[Outcome]] = {}
        self._watched: dict[SameCall, _Watched] = {}

    async def outcome(
        self, same: SameCall, work: Callable[[], Coroutine[Any, Any, Outcome]], until: float
    ) -> Outcome:
        """The outcome of ``work``: of a call that runs it already, or of this one.

        One that joins waits until ``until``, by the loop's clock, and raises RequestInProgress
        then; its response is a replay. Raises DeadlineTooShort for a caller that will be gone:
        detached work has no deadline.
        """
        watched = self._watched.get(same)
        if watched is not None and watched.seen is not None and not watched.task.done():
            # It is decided, and others wait for the payment.
            return watched.seen
        running = self._running.get(same)
        if running is None:
            left_s = deadlines.remaining()
            if left_s is not None and left_s < _LEAST_S:
                raise DeadlineTooShort
            task = self._running[same] = self._tasks.start(work())
            task.add_done_callback(lambda _: self._running.pop(same))
            return await result_of(task)
        if not await finished_within(running, until - now()):
            raise RequestInProgress(request_id=same[0].request_id)
        outcome = running.result()
        return replace(outcome, replayed=True) if isinstance(outcome, Result) else outcome

    async def watch(self, same: SameCall, seen: Confirmation, until: float) -> Confirmation | None:
        """Wait until the payment is not open, and return None; or as last seen at ``until``.

        Another replica, or another request, works on it. All that wait have one reader.
        """
        watched = self._watched.get(same)
        if watched is None or watched.task.done():
            watched = self._watched[same] = _Watched(seen)
            watched.task = self._tasks.start(self._read_while_open(watched))
        watched.waiting += 1
        try:
            if await finished_within(watched.task, until - now()):
                watched.task.result()  # Raises what the reader raised.
            return watched.seen
        finally:
            watched.waiting -= 1
            if not watched.waiting and self._watched.get(same) is watched:
                del self._watched[same]

    async def _read_while_open(self, watched: _Watched) -> None:
        pause_s = _POLL_S
        while watched.seen is not None:
            await asyncio.sleep(pause_s)
            if not watched.waiting:
                return
            pause_s = min(pause_s * 1.5, _POLL_S_MAX)
            payment_id = watched.seen.payment.payment_id
            found = await load_by_id(self._payments, payment_id)
            watched.seen = found if found is not None and found.open else None


@dataclass(slots=True, eq=False)
class _Watched:
    """A payment that calls wait for."""

    seen: Confirmation | None
    """As last read while it was open; None once it is not."""
    waiting: int = 0
    task: asyncio.Task[None] = field(init=False)


def now() -> float:
    return asyncio.get_running_loop().time()


def wait_until() -> float:
    """The loop's time until which the running call waits for others."""
    left_s = deadlines.remaining()
    return now() + (WAIT_S_MAX if left_s is None else min(WAIT_S_MAX, left_s - MARGIN_S))
