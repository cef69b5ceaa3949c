"""Issues the coupons of the queues: for each partition, one consumer at a time over all replicas.

The consumer of a partition holds its lock (``common.locking.key_locks``). For each queue:

    read the first entries → issue their coupons, one transaction → finish the entries, one script

An entry stays at the head of its queue until it is finished. So whoever consumes next, after a
kill, begins with it; what was committed is then replayed. A consumer that was paused beyond its
lease, with tickets in hand, is refused by the fence in the campaign's row.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import math
import time
from contextlib import suppress
from typing import Final

import structlog
from prometheus_client import Gauge

from common.backoff import Backoff
from common.errors import Refusal
from common.locking.key_locks import KeyLocks
from common.locking.lock_errors import LockBusy, LockLost, LocksClosed, LockUnavailable
from common.locking.redis import RedisUnavailable
from common.metrics import REGISTRY
from common.tasks import is_cancelled
from coupon_service.model.ticket import PARTITIONS, partition_of
from coupon_service.store.queue import Queues
from coupon_service.store.queue_entries import Head
from coupon_service.store.queue_scripts import consumer_key
from coupon_service.use_cases.queue_turn import ConsumerSuperseded, QueueTurns
from coupon_service.use_cases.ticket_decider import TicketLane

QUEUES_MAX: Final = 64
"""Queues of one partition that are served at once."""
TURNS_MAX: Final = 32
"""Turns of a queue, if QUEUES_MAX are served: then another one may be served."""
IDLE_S: Final = 0.25
"""How late, about, a consumer finds a ticket that another replica has queued where none waited."""
LOCK_WAIT_S: Final = 10.0
FAILURES_MAX: Final = 5
"""Turns of a queue that fail in a row, while none of the partition succeeds: then another replica
consumes it, which may reach a database that this one does not. Also turns of a queue that its
campaign's fence refuses: an election gives a new fence."""
SUPERSEDED_PAUSE_S: Final = 1.0
"""Of a queue whose campaign has a higher fence; the others go on."""
_RETRY: Final = Backoff(0.05, 1.0, jitter=(0.5, 1.0))

_consuming: Final = Gauge(
    "tally_queue_consuming",
    "1 while this replica consumes the queues of the partition, else 0.",
    ("partition",),
    registry=REGISTRY,
)
_depth: Final = Gauge(
    "tally_queue_depth",
    "Tickets that wait in the queues of the partition, as its consumer found them last.",
    ("partition",),
    registry=REGISTRY,
)
_age: Final = Gauge(
    "tally_queue_age_seconds",
    "How long the first ticket of the partition's slowest queue has been waiting, in seconds.",
    ("partition",),
    registry=REGISTRY,
)
_log = structlog.stdlib.get_logger()


class QueueConsumer:
    """This replica's part in consuming the queues."""

    def __init__(self, queues: Queues, lane: TicketLane, locks: KeyLocks) -> None:
        self._partitions = [_Partition(number, queues, lane, locks) for number in range(PARTITIONS)]

    def start(self, ready: asyncio.Event) -> None:
        """Try to become the consumer of every partition once ``ready`` is set, until ``close``."""
        for partition in self._partitions:
            partition.start(ready)

    def wake(self, queue: str) -> None:
        """Look for tickets at once: one was queued here."""
        self._partitions[partition_of(queue)].wake()

    async def close(self) -> None:
        """End after the batches in progress, and let other replicas consume."""
        await asyncio.gather(*(partition.close() for partition in self._partitions))


class _Partition:
    """One partition, which this replica consumes while it holds the lock."""

    def __init__(self, number: int, queues: Queues, lane: TicketLane, locks: KeyLocks) -> None:
        self._number = number
        self._queues = queues
        self._lane = lane
        self._locks = locks
        self._task: asyncio.Task[None] | None = None
        self._holding = False
        self._closed = asyncio.Event()
        self._woken = asyncio.Event()
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._done = 0
        """Turns of all queues that have decided tickets."""
        self._heads: dict[str, Head] = {}
        """Of the queues that are served, as they were read last."""
        self._since: dict[str, float] = {}
        """Since when the first ticket of a queue has been waiting, on the monotonic clock."""

    def start(self, ready: asyncio.Event) -> None:
        self._task = asyncio.create_task(self._run(ready), name=f"queues {self._number}")

    def wake(self) -> None:
        self._woken.set()

    async def close(self) -> None:
        self._closed.set()
        self._woken.set()
        if self._task is None:
            return
        if not self._holding:
            self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self, ready: asyncio.Event) -> None:
        await ready.wait()
        failures = 0
        while not self._closed.is_set():
            try:
                await self._hold_and_consume()
            except (LockBusy, LockLost):
                failures = 0
            except LocksClosed:
                return
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                failures += 1
            except (LockUnavailable, _StepDown):
                failures += 1
            except Exception:  # noqa: BLE001 - whatever fails, the queues have to be consumed
                _log.error("queue_consumer_failed", partition=self._number, exc_info=True)
                failures += 1
            if failures:
                await self._pause(_RETRY.pause_s(failures))

    async def _hold_and_consume(self) -> None:
        """Raises LockError, or _StepDown."""
        label = str(self._number)
        async with self._locks.hold(
            [consumer_key(self._number)],
            wait_s=LOCK_WAIT_S,
            required=True,
            cancel_on_loss=True,
        ) as hold:
            assert hold.fence is not None, "a lock that is required, of one Redis"
            self._holding = True
            _log.info("queue_consumer_elected", partition=self._number, fence=hold.fence)
            _consuming.labels(label).set(1)
            _depth.labels(label).set(0)  # exported before the first ticket
            # A turn that the database holds up reads no head, while its tickets get older.
            _age.labels(label).set_function(self._age_s)
            try:
                await self._consume(hold.fence)
            finally:
                self._holding = False
                self._heads.clear()
                self._since.clear()
                for gauge in (_consuming, _depth):
                    gauge.labels(label).set(0)

    async def _consume(self, fence: int) -> None:
        """Serve every queue that has entries, until ``close``. Raises _StepDown."""
        await self._queues.check_eviction()
        serving = self._serving = {}
        try:
            while not self._closed.is_set():
                self._woken.clear()
                for queue in await self._active():
                    if queue not in serving and len(serving) < QUEUES_MAX:
                        serving[queue] = task = asyncio.create_task(self._serve(queue, fence))
                        task.add_done_callback(lambda _: self._woken.set())
                with suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_S):
                        await self._woken.wait()
                ended = [queue for queue, task in serving.items() if task.done()]
                await asyncio.gather(*(serving.pop(queue) for queue in ended))
            await asyncio.gather(*serving.values())
        finally:
            for task in serving.values():
                task.cancel()
            await asyncio.gather(*serving.values(), return_exceptions=True)

    async def _active(self) -> list[str]:
        try:
            return await self._queues.active(self._number, QUEUES_MAX)
        except RedisUnavailable:
            return []

    async def _serve(self, queue: str, fence: int) -> None:
        """Decide the tickets of a queue until it is empty; for TURNS_MAX turns if others may wait.

        Raises _StepDown.
        """
        turns = QueueTurns(queue, self._queues, self._lane, fence)
        failures, done = 0, self._done
        try:
            for number in itertools.count(1):
                turn = await self._take(turns)
                crowded = number >= TURNS_MAX and len(self._serving) >= QUEUES_MAX
                if turn is _Turn.EMPTY or self._closed.is_set() or crowded:
                    return
                if turn is _Turn.DONE:
                    failures = 0
                    continue
                if turn is _Turn.FAILED and done != self._done:
                    # Other queues get on: the fault is of this one, not of this replica.
                    failures, done = 0, self._done
                failures += 1
                if failures >= FAILURES_MAX:
                    raise _StepDown
                again_s = _RETRY.pause_s(turns.failures)
                await self._pause(SUPERSEDED_PAUSE_S if turn is _Turn.SUPERSEDED else again_s)
        finally:
            self._note(queue, None)

    async def _take(self, turns: QueueTurns) -> _Turn:
        """Take a turn; whatever fails in it, the other queues go on."""
        try:
            head = await turns.read()
            self._note(turns.queue, head)
            await turns.decide(head)
        except ConsumerSuperseded:
            turn = _Turn.SUPERSEDED
        except (RedisUnavailable, Refusal):
            turn = _Turn.FAILED
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            turn = _Turn.FAILED
        except Exception:  # noqa: BLE001 - one queue must not stop the others
            _log.error("queue_failed", queue=turns.queue, exc_info=True)
            turn = _Turn.FAILED
        else:
            if not head.entries:
                return _Turn.EMPTY
            turns.succeeded()
            self._done += 1
            return _Turn.DONE
        turns.failed()
        return turn

    def _note(self, queue: str, head: Head | None) -> None:
        """Keep what was read of a queue; None if it is not served any more."""
        self._heads.pop(queue, None)
        self._since.pop(queue, None)
        if head is not None and head.entries:
            self._heads[queue] = head
            self._since[queue] = time.monotonic() - head.age_s
        _depth.labels(str(self._number)).set(sum(one.waiting for one in self._heads.values()))

    def _age_s(self) -> float:
        return max(0.0, time.monotonic() - min(self._since.values(), default=math.inf))

    async def _pause(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._closed.wait()


class _Turn(enum.Enum):
    """What became of a turn."""

    EMPTY = enum.auto()
    """The queue has no entries."""
    DONE = enum.auto()
    FAILED = enum.auto()
    """It has to be repeated."""
    SUPERSEDED = enum.auto()
    """The campaign has a higher fence than this consumer. If that is its successor's, the lock is
    lost, which ends this consumer. If not, the next election gives a new fence."""


class _StepDown(Exception):  # noqa: N818 - a state, not a fault
    """Another replica may decide what this one cannot, or the lock has to be acquired again."""
