"""Carries sagas out, step by step, detached from whoever asked for them.

    written down "begun" ─► call ─► its result and the next step's "begun" in one write ─► call …

Each saga of this replica is a task of its own. While its call runs a heartbeat renews its lease;
when the lease runs out, because the replica died or hangs, any replica takes the saga over under a
new epoch. What has to wait longer than a call's own repeats waits in its row, not in memory: the
sweep of any replica takes it up when it is due.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from prometheus_client import Counter, Gauge

from common import deadlines, tracing
from common.errors import Internal, Refusal
from common.metrics import REGISTRY
from order_service.clients import Ask, Outcome, Services, outcome_of
from order_service.errors import NotPaid
from order_service.model.sagas import Facts, Saga, State, StepRecord, StepState, told
from order_service.saga import Call, Pivot, Plan, Step, TakeBack, closing_step, ending, plan_of
from order_service.saga_journal import Journal, SagaLost

_log = structlog.stdlib.get_logger()

_steps = Counter(
    "tally_saga_steps",
    "Calls made by sagas, by step, direction and what came of it.",
    ("step", "direction", "outcome"),
    registry=REGISTRY,
)
_ended = Counter(
    "tally_sagas",
    "Sagas that came to a stop, by kind and state.",
    ("kind", "state"),
    registry=REGISTRY,
)
_takeovers = Counter(
    "tally_saga_takeovers", "Sagas that this replica took up from their rows.", registry=REGISTRY
)
_lost = Counter(
    "tally_saga_losses", "Sagas that another replica took over from this one.", registry=REGISTRY
)
_running = Gauge("tally_sagas_running", "Sagas this replica is at work on.", registry=REGISTRY)


@dataclass(frozen=True, slots=True)
class SagaLimits:
    """The runner's bounds."""

    lease_s: float = 10.0
    """After this time without a sign of life another replica takes over."""
    running_max: int = 256
    """Sagas at work on one replica; beyond 3/4 of it new payments are told OVERLOADED."""
    call_s: float = 15.0
    """One step, its quick repeats included."""
    backoff_s: float = 0.5
    """First wait after a step that must succeed did not; doubles each time."""
    backoff_max_s: float = 10.0
    attempts_max: int = 60
    """In a row without success; then a person has to look."""
    unreached_max: int = 3
    """How often in a row a gateway that provably was not reached is tried before it is undone."""
    hand_over_s: float = 2.0
    """How long sagas get to end their call when the replica stops."""


@dataclass(slots=True, eq=False)
class Running:
    """A saga at work in this replica."""

    saga: Saga
    pivot_by: float | None
    """On the event loop's clock; None: it has no deadline."""
    task: asyncio.Task[None] | None = None

    @property
    def late(self) -> bool:
        """The time in which the saga had to reach its pivot has passed."""
        return self.pivot_by is not None and asyncio.get_running_loop().time() >= self.pivot_by


class Runner:
    """The sagas of one replica."""

    def __init__(
        self,
        services: Services,
        journal: Journal,
        limits: SagaLimits | None = None,
        *,
        on_end: Callable[[Saga], None] = lambda _saga: None,
    ) -> None:
        """``on_end`` hears of every saga that stopped here, wherever it stands then."""
        self._services = services
        self._journal = journal
        self.limits = limits or SagaLimits()
        self._on_end = on_end
        self._at_work: dict[str, Running] = {}
        self._stopping = False
        self._context = tracing.own_context()

    # -- what is at work -------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether a new saga may begin here. The last quarter of the room is the sweep's.

        Payments that keep coming must not keep out those that already have something to undo.
        """
        return 4 * len(self._at_work) < 3 * self.limits.running_max

    def start(self, saga: Saga) -> None:
        """Be at work on a saga whose epoch is ours. Returns at once."""
        before = self._at_work.get(saga.saga_id)
        if before is not None and before.task is not None:
            # Our own lease ran out, unnoticed by us; the new epoch is the only right one.
            before.task.cancel()
        left = saga.time_left_s
        pivot_by = None if left is None else asyncio.get_running_loop().time() + left
        running = Running(saga, pivot_by)
        self._at_work[saga.saga_id] = running
        _running.set(len(self._at_work))
        # In a context of its own: the caller's deadline is not the saga's. Its trace is.
        running.task = asyncio.get_running_loop().create_task(
            self._run(running), context=self._context(), name=f"saga {saga.saga_id}"
        )

    async def sweep(self, stopping: asyncio.Event | None = None) -> int:
        """Take up sagas that are due or whose replica is gone; returns how many.

        Ends after the batch in which ``stopping`` is set.
        """
        taken = 0
        while not self._stopping:
            room = self.limits.running_max - len(self._at_work)
            if room <= 0:
                break
            sagas = await self._journal.take_over(lease_s=self.limits.lease_s, room=room)
            for saga in sagas:
                with tracing.root("tally.order.saga_taken_up"):
                    self.start(saga)
            taken += len(sagas)
            if len(sagas) < room or (stopping is not None and stopping.is_set()):
                break
        if taken:
            _takeovers.inc(taken)
            _log.info("sagas_taken_up", count=taken)
        return taken

    async def beat(self) -> None:
        """Renew the leases of all that are at work; drop those that are lost."""
        running = list(self._at_work.values())
        answers = await asyncio.gather(
            *(self._journal.renew(one.saga, lease_s=self.limits.lease_s) for one in running),
            return_exceptions=True,
        )
        for one, answer in zip(running, answers, strict=True):
            if isinstance(answer, SagaLost) and one.task is not None:
                one.task.cancel()

    async def idle(self) -> None:
        """Returns when nothing is at work here."""
        while tasks := self._tasks():
            await asyncio.wait(tasks)

    async def hand_over(self) -> None:
        """Stop, and let every saga go so that another replica takes it up at once."""
        self._stopping = True
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=self.limits.hand_over_s)
        late = list(self._at_work.values())
        for running in late:
            if running.task is not None:
                running.task.cancel()
        await asyncio.gather(*self._tasks(), return_exceptions=True)
        await asyncio.gather(
            *(self._journal.renew(running.saga, lease_s=0) for running in late),
            return_exceptions=True,
        )

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [one.task for one in self._at_work.values() if one.task is not None]

    # -- one saga --------------------------------------------------------------------------------

    async def _run(self, running: Running) -> None:
        saga = running.saga
        log = _log.bind(saga_id=saga.saga_id, order_id=saga.order_id, epoch=saga.epoch)
        try:
            while await self._move(running):
                pass
        except SagaLost:
            _lost.inc()
            log.warning("saga_lost")
        except Refusal as refusal:
            # The journal cannot be written. What happened since is not known to it, but what was
            # begun is: whoever takes the saga over asks for that again.
            log.warning("saga_left", error=told(refusal))
        except Exception:
            log.exception("saga_failed")
            await self._wait_after_defect(saga)
        finally:
            if self._at_work.get(saga.saga_id) is running:
                del self._at_work[saga.saga_id]
                _running.set(len(self._at_work))
            self._on_end(saga)

    async def _wait_after_defect(self, saga: Saga) -> None:
        """A defect of ours counts as an attempt: met again and again, a person has to look."""
        try:
            await self._later(saga, "INTERNAL")
        except (SagaLost, Refusal) as error:
            # Lost, or not to be written: whoever takes it over begins from its row.
            _log.warning("saga_left", saga_id=saga.saga_id, error=repr(error))

    async def _move(self, running: Running) -> bool:
        """One move of the saga; returns whether another one follows here and now."""
        saga = running.saga
        if self._stopping:
            saga.waits = True
            await self._journal.write(saga, lease_s=0)
            return False
        plan = plan_of(saga)
        if plan is None:
            return await self._later(saga, "the plan is not known to this release")
        if saga.failure is not None:
            return await self._back(saga, plan)
        return await self._forward(running, plan)

    async def _forward(self, running: Running, plan: Plan) -> bool:
        saga = running.saga
        try:
            step = plan.advance(saga)
        except Refusal as refusal:
            saga.turn_back(refusal)
            return True
        if step is None:
            return await self._close(saga)
        record = saga.step(step.name)
        at_pivot = isinstance(step, Pivot) and record.state is not StepState.PENDING
        if running.late and not at_pivot and not plan.decided(saga):
            _not_paid(saga, NotPaid(step=step.name, cause="TIME_IS_UP"))
            return True
        saga.begin(record)
        await self._journal.write(saga, lease_s=self.limits.lease_s)
        answer = await self._call(step.do, step.doing(saga), self._limit_s(running, plan, step))
        _count(step.name, "do", answer)
        if isinstance(answer, Facts):
            saga.done(record, answer)
            return True
        if plan.decided(saga):
            saga.unsettled(record, told(answer))
            return await self._later(saga, told(answer))
        if isinstance(step, Pivot):
            return await self._undecided(running, record, answer)
        if outcome_of(answer) is Outcome.REFUSED:
            saga.turn_back(answer, record)
        else:
            _not_paid(saga, NotPaid(step=step.name, cause=_cause(answer)), record, unknown=True)
        return True

    async def _undecided(self, running: Running, record: StepRecord, answer: Refusal) -> bool:
        """The pivot did not say yes."""
        saga = running.saga
        outcome = outcome_of(answer)
        unreached = outcome is Outcome.UNREACHED
        saga.unsettled(record, told(answer), unreached=unreached)
        if outcome is Outcome.REFUSED:
            saga.turn_back(answer, record)
            return True
        if unreached and (running.late or record.unreached >= self.limits.unreached_max):
            # The attempt's answer is kept: none that says "ask again" may become one.
            kept = answer.reason == NotPaid.reason
            failure = answer if kept else NotPaid(step=record.name, cause=_cause(answer))
            _not_paid(saga, failure, record)
            return True
        return await self._later(saga, told(answer))

    async def _back(self, saga: Saga, plan: Plan) -> bool:
        step = plan.undoing(saga)
        if step is None:
            return await self._close(saga)
        record = saga.step(step.name)
        saga.begin_undo(record)
        # This write also makes the decision to turn back durable, before anything is undone:
        # forgotten in between, the saga would go on with what has been taken back.
        await self._journal.write(saga, lease_s=self.limits.lease_s)
        answer = await self._call(step.undo, step.undoing(saga), self.limits.call_s)
        _count(step.name, "undo", answer)
        if isinstance(answer, Facts):
            saga.undone(record)
            return True
        record.last_error = told(answer)
        return await self._later(saga, told(answer))

    async def _close(self, saga: Saga) -> bool:
        try:
            await self._journal.close(saga.closed(ending(saga), closing_step(saga)))
        except Refusal as refusal:
            return await self._later(saga, told(refusal))
        saga.state = ending(saga)
        _ended.labels(saga.kind.value, saga.state.value).inc()
        return False

    async def _later(self, saga: Saga, error: str) -> bool:
        """Let the saga wait in its row; after too many attempts, for a person."""
        saga.wait(error)
        pause_s = min(self.limits.backoff_max_s, self.limits.backoff_s * 2 ** (saga.attempts - 1))
        if saga.attempts >= self.limits.attempts_max:
            saga.park(error)
            _ended.labels(saga.kind.value, State.NEEDS_ATTENTION.value).inc()
            _log.error("saga_needs_attention", saga_id=saga.saga_id, error=error)
        # Jitter: sagas that failed together must not come back together.
        pause_s *= random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
        await self._journal.write(saga, lease_s=pause_s)
        return False

    async def _call(self, call: Call, ask: Ask, limit_s: float) -> Facts | Refusal:
        try:
            with deadlines.within(limit_s):
                return await call(self._services, ask)
        except Refusal as refusal:
            return refusal
        except Exception:  # noqa: BLE001 - a defect of ours; whether it called before, who knows
            _log.exception("saga_call_failed", request_id=ask.request_id)
            return Internal()

    def _limit_s(self, running: Running, plan: Plan, step: Step | TakeBack) -> float:
        """Before the pivot no call outlasts the saga's own time."""
        if running.pivot_by is None or isinstance(step, Pivot) or plan.decided(running.saga):
            return self.limits.call_s
        left_s = running.pivot_by - asyncio.get_running_loop().time()
        return max(0.0, min(self.limits.call_s, left_s))


def _not_paid(
    saga: Saga, failure: Refusal, record: StepRecord | None = None, *, unknown: bool = False
) -> None:
    """Turn back for what is nobody's decision: an operator will want to know how often, and why."""
    _log.warning("saga_not_paid", saga_id=saga.saga_id, order_id=saga.order_id, **failure.metadata)
    saga.turn_back(failure, record, unknown=unknown)


def _cause(refusal: Refusal) -> str:
    return refusal.reason or refusal.code.value


def _count(step: str, direction: str, answer: Facts | Refusal) -> None:
    outcome = "done" if isinstance(answer, Facts) else outcome_of(answer).value
    _steps.labels(step, direction, outcome).inc()
