"""The sagas that one replica runs, detached from the callers that began them.

Each saga is a task of its own. While a call runs, a heartbeat renews the saga's lease; when the
lease expires, because the replica died or hangs, any replica takes the saga over under a new epoch.
A saga that has to wait longer than a call's own retries waits in its row, not in memory: the sweep
of any replica takes it over when it is due.

Two bulkheads: sagas that may call the payment gateway and sagas that do not have a capacity each. A
slow gateway fills the first and refuses no payment that does not use it.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter as Counts
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from common import tracing
from common.errors import Refusal
from common.metrics import REGISTRY, from_zero
from order_service.clients import Services
from order_service.errors import SagaLost
from order_service.model.saga import Saga
from order_service.saga.execution import SagaExecution
from order_service.saga.journal import SagaJournal
from order_service.saga.peers import Peers
from order_service.saga.running import RunningSaga, SagaEnd, SagaLimits
from order_service.store.journal import TakenOver

RENEWAL_PARTS: Final = 3
"""A lease is renewed this often in its time."""

_log = structlog.stdlib.get_logger()

_takeovers = Counter(
    "tally_saga_takeovers",
    "Sagas that this replica took over, by cause: expired (the replica that ran it died or lost "
    "it: its lease ended) or due (it waited in its row: its own pause has passed, or a replica "
    "that stopped gave it up).",
    ("cause",),
    registry=REGISTRY,
)
from_zero(_takeovers, ("expired", "due"))
_running = Gauge("tally_sagas_running", "Sagas that this replica runs.", registry=REGISTRY)


class Runner:
    """The sagas of one replica."""

    def __init__(
        self, services: Services, journal: SagaJournal, limits: SagaLimits | None = None
    ) -> None:
        self._journal = journal
        self.limits = limits or SagaLimits()
        self._peers = Peers()
        self._execution = SagaExecution(services, journal, self.limits, self._peers)
        self._sagas: dict[str, RunningSaga] = {}
        self._in_use: Counts[bool] = Counts()
        """Capacity in use: sagas that run or begin, by ``uses_gateway``."""
        self._retries: Counts[bool] = Counts()
        """Those of them that had failed before when they were taken over."""
        self._context = tracing.own_context()

    @contextmanager
    def beginning(self, *, uses_gateway: bool) -> Iterator[bool]:
        """A block in which a new saga may begin, and whether there is capacity for it.

        There is none if three quarters of its bulkhead are in use: new payments must not keep out
        sagas that already have something to compensate. The saga counts as running from here on,
        so that a burst of payments cannot exceed the limit together.
        """
        has_capacity = 4 * self._in_use[uses_gateway] < 3 * self.limits.running_max
        self._in_use[uses_gateway] += has_capacity
        try:
            yield has_capacity
        finally:
            self._in_use[uses_gateway] -= has_capacity

    def start(self, saga: Saga, now: datetime) -> asyncio.Future[SagaEnd | None]:
        """Run a saga that this replica owns; returns its ``RunningSaga.end`` at once.

        ``now``: the database's clock.
        """
        before = self._sagas.get(saga.saga_id)
        if before is not None:
            # This replica's own lease expired unnoticed; only the new epoch may write.
            before.task.cancel()
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        running = RunningSaga(saga, now, now_s, now_s + self.limits.lease_s, loop.create_future())
        self._sagas[saga.saga_id] = running
        _running.set(len(self._sagas))
        uses_gateway, retry = saga.asked.uses_gateway, saga.attempts > 0
        self._in_use[uses_gateway] += 1
        self._retries[uses_gateway] += retry
        # In a context of its own: the caller's deadline is not the saga's. Its trace is.
        running.task = loop.create_task(
            self._execution.run(running), context=self._context(), name=f"saga {saga.saga_id}"
        )
        # Not in the task: one that is cancelled before its first step runs none of its code.
        running.task.add_done_callback(lambda _task: self._stopped(running, retry=retry))
        return running.end

    def end_of(self, saga_id: str) -> asyncio.Future[SagaEnd | None] | None:
        """Done when the saga stops here (``RunningSaga.end``); None if it does not run here."""
        running = self._sagas.get(saga_id)
        return None if running is None else running.end

    async def sweep(self, stopping: asyncio.Event | None = None) -> int:
        """Take over sagas that are due or whose lease has expired; returns how many.

        Ends after the batch in which ``stopping`` is set.
        """
        expired = due = 0
        for uses_gateway in (False, True):
            more = True
            while more and not (stopping is not None and stopping.is_set()):
                taken = await self._take_over(uses_gateway=uses_gateway)
                expired += taken.expired
                due += len(taken.sagas) - taken.expired
                more = taken.full
        if expired or due:
            _log.info("sagas_taken_up", expired=expired, due=due)
        return expired + due

    async def _take_over(self, *, uses_gateway: bool) -> TakenOver:
        """Fill a bulkhead with sagas of other replicas, and those that are due.

        Sagas that have failed before take a quarter of it at most: they leave capacity for those of
        dead replicas and for new payments. While a service is away, one of its sagas continues.
        """
        capacity = self.limits.running_max - self._in_use[uses_gateway]
        if capacity <= 0 or self._execution.stopping:
            return TakenOver([], None)
        taken = await self._journal.take_over(
            lease_s=self.limits.lease_s,
            uses_gateway=uses_gateway,
            capacity=capacity,
            retries=math.ceil(self.limits.running_max / 4) - self._retries[uses_gateway],
            away=self._peers.away,
        )
        # At once: a sweep of many batches may be cut off.
        _takeovers.labels("expired").inc(taken.expired)
        _takeovers.labels("due").inc(len(taken.sagas) - taken.expired)
        for saga in taken.sagas:
            assert taken.now is not None
            with tracing.root("tally.order.saga_taken_up"):
                self.start(saga, taken.now)
        return taken

    async def beat(self) -> None:
        """Renew the leases of all running sagas; stop those that are lost.

        A renewal that waits for a locked row continues beside the next beats: it must not delay
        those of other sagas.
        """
        for running in self._sagas.values():
            if running.renewal is None or running.renewal.done():
                running.renewal = asyncio.create_task(self._renew(running))
        if renewals := self._renewals():
            await asyncio.wait(renewals, timeout=self.limits.lease_s / RENEWAL_PARTS)

    async def _renew(self, running: RunningSaga) -> None:
        began_s = asyncio.get_running_loop().time()
        try:
            await self._journal.renew(running.saga, lease_s=self.limits.lease_s)
        except SagaLost:
            running.task.cancel()
        except Refusal:
            pass  # The next beat tries again, and the lane has logged that the database is away.
        else:
            running.lease_until_s = began_s + self.limits.lease_s

    async def hand_over(self) -> None:
        """Stop, and give every saga up so that another replica takes it over at once."""
        self._execution.stop()
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=self.limits.hand_over_s)
        late = list(self._sagas.values())
        renewals = self._renewals()
        for task in (*self._tasks(), *renewals):
            task.cancel()
        await asyncio.gather(*self._tasks(), *renewals, return_exceptions=True)
        await asyncio.gather(
            *(self._journal.renew(running.saga, lease_s=0) for running in late),
            return_exceptions=True,
        )

    def _renewals(self) -> list[asyncio.Task[None]]:
        return [one.renewal for one in self._sagas.values() if one.renewal is not None]

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [running.task for running in self._sagas.values()]

    def _stopped(self, running: RunningSaga, *, retry: bool) -> None:
        uses_gateway = running.saga.asked.uses_gateway
        self._in_use[uses_gateway] -= 1
        self._retries[uses_gateway] -= retry
        if not running.end.done():
            running.end.set_result(None)
        if self._sagas.get(running.saga.saga_id) is running:
            del self._sagas[running.saga.saga_id]
            _running.set(len(self._sagas))
