"""The execution of one saga: its steps, their compensation, its end.

begun with the saga ─► call ─► result and the next step's begin in one write ─► call … ─► the last
result with the saga's end

Only the saga's own task changes and writes it. Compensations are called side by side; the task
waits for all of them and writes their results in one snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final

from prometheus_client import Counter

from common.backoff import Backoff
from common.errors import Refusal
from common.metrics import REGISTRY, from_zero
from order_service.clients import (
    Services,
    StepEffect,
    effect_of,
    is_gateway_known_away,
    is_overloaded,
    is_refund_refused,
    waits_for,
)
from order_service.errors import NotPaid, SagaLost
from order_service.model.saga import (
    LIVE,
    Saga,
    SagaKind,
    SagaState,
    StepRecord,
    StepState,
    describe,
)
from order_service.model.saga_input import StepResults
from order_service.saga.calls import StepCalls, direction_of
from order_service.saga.journal import SagaJournal
from order_service.saga.log import log_attention, log_failed_call, log_not_paid, log_of
from order_service.saga.peers import Peers
from order_service.saga.plan import GiveBack, Pivot, Plan, Step, plan_of
from order_service.saga.running import RunningSaga, SagaEnd, SagaLimits
from order_service.saga.writes import SagaWrites

REFUND_REFUSED_S: Final = 600.0
"""Between attempts at a refund that the gateway has refused permanently."""

_ON_ITS_WAY: Final = frozenset({SagaState.RUNNING, SagaState.COMPENSATING})
_ended = Counter(
    "tally_sagas",
    "Sagas that ended or began to need attention, by kind and state.",
    ("kind", "state"),
    registry=REGISTRY,
)
from_zero(_ended, SagaKind, [state for state in SagaState if state not in _ON_ITS_WAY])
_lost = Counter(
    "tally_saga_losses", "Sagas that another replica took over from this one.", registry=REGISTRY
)


class SagaExecution:
    """Executes the sagas of one replica, each in a task of its own."""

    def __init__(
        self, services: Services, journal: SagaJournal, limits: SagaLimits, peers: Peers
    ) -> None:
        self._calls = StepCalls(services, peers)
        self._writes = SagaWrites(journal)
        self._limits = limits
        self._backoff = Backoff(limits.backoff_s, limits.backoff_max_s)

    @property
    def stopping(self) -> bool:
        """Whether the replica stops."""
        return self._writes.stopping

    def stop(self) -> None:
        """Let each saga wait in its row after its current call."""
        self._writes.stopping = True

    async def run(self, running: RunningSaga) -> None:
        """Execute the saga until it ends, waits, or is lost."""
        saga = running.saga
        try:
            plan = plan_of(saga)
            while await self._advance(running, plan):
                pass
        except SagaLost:
            _lost.inc()
            log_of(saga).warning("saga_lost")
        except Refusal as refusal:
            # The journal could not be written while the lease lasted. It has every call that was
            # begun: the replica that takes the saga over repeats the last one.
            log_of(saga).warning("saga_left", error=describe(refusal))
        except Exception:  # noqa: BLE001 - a defect of Tally, which is logged
            log_of(saga).exception("saga_failed")
            await self._wait_after_defect(running)

    async def _wait_after_defect(self, running: RunningSaga) -> None:
        """A defect of Tally counts as a failed attempt."""
        try:
            await self._wait(running, "INTERNAL")
        except Refusal as error:
            # Lost, or not writable: the replica that takes the saga over begins from its row.
            log_of(running.saga).warning("saga_left", error=describe(error))

    async def _advance(self, running: RunningSaga, plan: Plan | None) -> bool:
        """One step of the saga; returns whether another one follows here and now."""
        saga = running.saga
        if self.stopping:
            saga.waits = True
            await self._writes.write(running, lease_s=0)
            return False
        if plan is None:
            return await self._wait(running, "the plan is not known to this release")
        if saga.gives_back:
            return await self._give_back(running, plan)
        return await self._forward(running, plan)

    # -- forward ---------------------------------------------------------------------------------

    async def _forward(self, running: RunningSaga, plan: Plan) -> bool:
        saga = running.saga
        try:
            step = plan.next_step(saga)
        except Refusal as refusal:
            saga.turn_back(refusal)
            return True
        if step is None:
            return await self._close(running, plan)
        record = saga.step(step.name)
        written = saga.inserted_with(record)
        called = record.state is not StepState.PENDING and not written
        at_pivot = isinstance(step, Pivot) and called
        if running.late and not at_pivot:
            _turn_back_unpaid(saga, NotPaid(step=step.name, cause="TIME_IS_UP"))
            return True
        if not written:
            saga.begin(record, running.now)
            await self._writes.write(running, lease_s=self._limits.lease_s)
        reply = await self._calls.do(
            step, record, step.call(saga), limit_s=self._limit_s(running, step)
        )
        if isinstance(reply, StepResults):
            saga.complete(record, reply, running.now)
            return True
        if isinstance(step, Pivot):
            return await self._after_pivot_failed(running, record, reply)
        log_failed_call(saga, record, reply)
        if effect_of(reply) is StepEffect.REFUSED:
            saga.refuse(record, reply, running.now)
            saga.turn_back(reply)
        else:
            failure = NotPaid(step=step.name, cause=_cause(reply))
            saga.leave_unknown(record, describe(failure))
            _turn_back_unpaid(saga, failure)
        return True

    async def _after_pivot_failed(
        self, running: RunningSaga, record: StepRecord, reply: Refusal
    ) -> bool:
        saga = running.saga
        effect = effect_of(reply)
        unreached = effect is StepEffect.UNREACHED or is_overloaded(reply)
        saga.leave_unknown(record, describe(reply), unreached=unreached)
        if effect is StepEffect.REFUSED:
            saga.refuse(record, reply, running.now)
            log_failed_call(saga, record, reply)
            saga.turn_back(reply)
            return True
        if unreached and self._gives_up(running, record, reply):
            log_failed_call(saga, record, reply)
            # The refusal is stored. It must not have RetryInfo.
            final = reply.reason == NotPaid.reason
            failure = reply if final else NotPaid(step=record.name, cause=_cause(reply))
            saga.refuse(record, failure, running.now)
            _turn_back_unpaid(saga, failure)
            return True
        self._postpone(running, record, reply, "do")
        return await self._wait_for(running, [record])

    def _gives_up(self, running: RunningSaga, record: StepRecord, reply: Refusal) -> bool:
        """Whether a pivot that was not reached is not called again: nothing is charged."""
        if is_overloaded(reply):
            # Only time ends the attempt, and only if no earlier call may have arrived.
            return running.late and record.unreached == record.attempts
        tries_over = record.unreached >= self._limits.unreached_max
        return running.late or tries_over or is_gateway_known_away(reply)

    # -- back ------------------------------------------------------------------------------------

    async def _give_back(self, running: RunningSaga, plan: Plan) -> bool:
        """Call side by side what gives back; each succeeds, waits or is refused on its own."""
        saga = running.saga
        left = plan.left_to_give_back(saga)
        if not left:
            return await self._close(running, plan)
        due = [one for one in left if one.record.is_due(running.now)]
        if not due:
            return await self._wait_for(running, [one.record for one in left])
        if not all(saga.inserted_with(one.record) for one in due):
            await self._begin_to_give_back(running, due)
        replies = await asyncio.gather(
            *(self._calls.give_back(one, limit_s=self._limits.call_s) for one in due)
        )
        for one, reply in zip(due, replies, strict=True):
            await self._after_give_back(running, one, reply)
        return True

    async def _begin_to_give_back(self, running: RunningSaga, due: list[GiveBack]) -> None:
        """Write that these calls begin."""
        saga = running.saga
        for one in due:
            if one.record.undoes:
                saga.begin(one.record, running.now)
            else:
                saga.begin_undo(one.record)
        # This write also makes the decision to turn back durable, before anything is undone: if it
        # were lost in between, the saga would continue with what has been compensated.
        await self._writes.write(running, lease_s=self._limits.lease_s)

    async def _after_give_back(
        self, running: RunningSaga, one: GiveBack, reply: StepResults | Refusal
    ) -> None:
        saga, record = running.saga, one.record
        refused = isinstance(reply, Refusal) and is_refund_refused(reply)
        if one.fences and (refused or isinstance(reply, StepResults)):
            saga.fence(record)
        elif isinstance(reply, Refusal):
            error, before = describe(reply), record.last_error
            if record.undoes:
                saga.leave_unknown(record, error)
            self._postpone(running, record, reply, direction_of(record))
            if refused and error != before:
                await self._after_refund_refused(running, error)
        elif record.undoes:
            saga.complete(record, reply, running.now)
        else:
            saga.compensate(record, running.now)

    async def _after_refund_refused(self, running: RunningSaga, error: str) -> None:
        """Show it to a person and, if the saga still owns its order, on the order."""
        saga = running.saga
        saga.flag()
        self._report(running, error)
        if saga.state in LIVE:
            reason = error.partition(" ")[2]
            await self._writes.note(running, reason)

    async def _close(self, running: RunningSaga, plan: Plan) -> bool:
        saga = running.saga
        try:
            order = await self._writes.close(running)
        except SagaLost:
            raise
        except Refusal as refusal:
            return await self._wait(running, describe(refusal))
        _ended.labels(saga.kind.value, plan.state_after(saga).value).inc()
        running.end.set_result(SagaEnd(order, saga.failure))
        return False

    # -- waiting ---------------------------------------------------------------------------------

    def _postpone(
        self, running: RunningSaga, record: StepRecord, reply: Refusal, direction: str
    ) -> None:
        pause_s = self._backoff.pause_s(record.failures + 1)
        if is_refund_refused(reply):
            # A person has to act, and the poll of payments notices.
            pause_s = REFUND_REFUSED_S
        until = running.now + timedelta(seconds=pause_s)
        waiting_for = waits_for(record.participant, reply)
        record.postpone(describe(reply), running.now, until, waiting_for)
        log_failed_call(running.saga, record, reply, direction=direction, next_attempt=until)

    async def _wait_for(self, running: RunningSaga, records: list[StepRecord]) -> bool:
        """Let the saga wait in its row until the earliest of its steps is due."""
        first = min(records, key=_next_attempt)
        pause_s = max(0.0, (_next_attempt(first) - running.now).total_seconds())
        # If one step waits for nothing in particular, the saga waits for its time only.
        names = {record.waits_for for record in records}
        return await self._wait(running, first.last_error, set() if "" in names else names, pause_s)

    async def _wait(
        self,
        running: RunningSaga,
        error: str,
        waits_for: Collection[str] = (),
        pause_s: float | None = None,
    ) -> bool:
        """Let the saga wait in its row. When it fails for too long, a person should look."""
        saga = running.saga
        saga.wait(error, waits_for)
        assert saga.create_time is not None
        if (running.now - saga.create_time).total_seconds() >= self._limits.attention_s:
            self._flag(running, error)
        if pause_s is None:
            pause_s = self._backoff.pause_s(saga.attempts)
        await self._writes.write(running, lease_s=pause_s)
        return False

    def _flag(self, running: RunningSaga, error: str) -> None:
        if running.saga.flag():
            self._report(running, error)

    def _report(self, running: RunningSaga, error: str) -> None:
        """Report to operators that a person should look."""
        saga = running.saga
        _ended.labels(saga.kind.value, SagaState.NEEDS_ATTENTION.value).inc()
        log_attention(saga, error)

    def _limit_s(self, running: RunningSaga, step: Step) -> float:
        """Before the pivot no call outlasts the saga's own time."""
        left_s = running.time_left_s
        if left_s is None or isinstance(step, Pivot):
            return self._limits.call_s
        return max(0.0, min(self._limits.call_s, left_s))


def _next_attempt(record: StepRecord) -> datetime:
    assert record.next_attempt_time is not None
    return record.next_attempt_time


def _turn_back_unpaid(saga: Saga, failure: Refusal) -> None:
    """Turn back although no service refused: operators want to know how often, and why."""
    log_not_paid(saga, failure)
    saga.turn_back(failure)


def _cause(refusal: Refusal) -> str:
    return refusal.reason or refusal.code.value
