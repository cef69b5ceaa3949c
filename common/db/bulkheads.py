"""Bulkheads: how many transactions of each purpose may have a connection at once.

A pool serves its callers in order of arrival, so many callers of one purpose would keep out all
others. A bulkhead bounds a purpose before it asks the pool: the others then wait for a few short
transactions at most, however many callers the purpose has.

Transactions that wait for rows are in two bulkheads. A row for which a whole lock_timeout was not
enough is stuck: its transactions take turns in a bulkhead of their own, and leave a connection to
those that wait for a moment only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter

from common.errors import Overloaded
from common.metrics import REGISTRY, from_zero

WAIT_S: Final = 3.0
"""How long a transaction waits for its bulkhead; then it is refused with OVERLOADED."""
JOBS: Final = 2
"""Transactions of jobs at once: a slow statement of one does not delay the next one."""

_refused = Counter(
    "tally_bulkhead_refusals",
    "Transactions refused with OVERLOADED since their bulkhead was full, by bulkhead.",
    ("bulkhead",),
    registry=REGISTRY,
)


class Bulkhead:
    """A bound on what is done at once; who comes later waits, in order of arrival."""

    def __init__(
        self, name: str, size: int, *, waiting_max: int | None = None, refuses: bool = True
    ) -> None:
        """``waiting_max``: how many may wait; None: any number.

        ``refuses``: those who have waited for WAIT_S; otherwise they wait without a limit.
        """
        self.name = name
        self.size = size
        self._waiting_max = waiting_max
        self._refuses = refuses
        if refuses or waiting_max is not None:
            from_zero(_refused, [name])
        self._places = asyncio.Semaphore(size)
        self._waiting = 0
        self._inside = 0

    @property
    def empty(self) -> bool:
        """Whether nobody is in the bulkhead or waits for it."""
        return not self._inside and not self._waiting

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the bulkhead for the block. Raises Overloaded if none is free in time."""
        if self._waiting_max is not None and self._waiting >= self._waiting_max:
            raise self._full()
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S if self._refuses else None):
                await self._places.acquire()
        except TimeoutError:
            raise self._full() from None
        finally:
            self._waiting -= 1
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._places.release()

    def _full(self) -> Overloaded:
        _refused.labels(self.name).inc()
        return Overloaded(bulkhead=self.name)


@dataclass(frozen=True, slots=True)
class Bulkheads:
    """The bulkheads of a service's database."""

    calls: Bulkhead
    """Transactions of single calls (carts) and of what must not wait for sweeps (renewals of
    leases), in the pool of the lanes. They wait for no lock."""
    jobs: Bulkhead
    """Sweeps, heartbeats and clean-ups. They skip what is locked."""
    contended: Bulkhead
    """Transactions of lanes that wait for a row for the first time."""
    stuck: Bulkhead
    """Transactions of lanes that have waited for their row before."""
    waiting: Bulkhead
    """All transactions of the last three: as many as their pool has connections."""

    @classmethod
    def of(cls, *, lanes: int, waiting: int) -> Bulkheads:
        """The bulkheads of pools with this many connections."""
        return cls(
            calls=Bulkhead("calls", max(1, lanes - 1)),
            jobs=Bulkhead("jobs", JOBS),
            # Callers leave by themselves when their time is over (``Lane``).
            contended=Bulkhead("contended", waiting, refuses=False),
            stuck=Bulkhead("stuck", max(1, waiting - 1), refuses=False),
            waiting=Bulkhead("waiting", waiting, refuses=False),
        )

    @asynccontextmanager
    async def for_job(self) -> AsyncIterator[None]:
        """A place for a transaction of a job. Raises Overloaded."""
        async with self.jobs.place(), self.waiting.place():
            yield

    @asynccontextmanager
    async def for_lock_wait(self, *, stuck: bool) -> AsyncIterator[None]:
        """A place for a transaction that waits for a row; ``stuck``: not for the first time."""
        async with (self.stuck if stuck else self.contended).place(), self.waiting.place():
            yield
