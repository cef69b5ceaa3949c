"""Sagas: the input, the progress of each step, and the changes of one saga.

The replica that owns a saga's epoch changes it in memory, and journals it before each call to
another service and after it. Times are the database's.

    RUNNING ─┬─► COMPLETED
             └─► COMPENSATING ─► COMPENSATED
    either of them ─► NEEDS_ATTENTION, which continues as before and ends in the same way
    NEEDS_ATTENTION ─► closed by a person: COMPENSATING ─► (RESOLVING ─►) RESOLVED
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, NamedTuple

from common.errors import Refusal
from common.money import Money
from order_service.model.saga_input import CancelInput, Failure, Parts, SagaInput, StepResults


class SagaKind(enum.StrEnum):
    """What a saga does."""

    PAY_ORDER = "PAY_ORDER"
    CANCEL_ORDER = "CANCEL_ORDER"


class SagaRequest(NamedTuple):
    """The request that began a saga."""

    kind: SagaKind
    user_id: str
    request_id: str


class SagaState(enum.StrEnum):
    """The state of a saga."""

    RUNNING = "RUNNING"
    COMPENSATING = "COMPENSATING"
    COMPLETED = "COMPLETED"
    COMPENSATED = "COMPENSATED"
    NEEDS_ATTENTION = "NEEDS_ATTENTION"
    """A person should look. It continues as before: its failure says in which direction."""
    RESOLVING = "RESOLVING"
    """A person closed it and its order is released; what is left is being undone."""
    RESOLVED = "RESOLVED"


class SagaOwner(NamedTuple):
    """What a saga's row says about who may write it."""

    epoch: int
    state: SagaState


LIVE: Final = (SagaState.RUNNING, SagaState.COMPENSATING, SagaState.NEEDS_ATTENTION)
"""A saga in these states owns its order. An order has at most one."""
ACTIVE: Final = (*LIVE, SagaState.RESOLVING)
"""A replica runs a saga in these states, or takes it over."""


class StepState(enum.StrEnum):
    """The state of a step."""

    PENDING = "PENDING"
    BEGUN = "BEGUN"
    DONE = "DONE"
    REFUSED = "REFUSED"
    UNKNOWN = "UNKNOWN"
    COMPENSATED = "COMPENSATED"
    SKIPPED = "SKIPPED"
    STANDING = "STANDING"
    """Its effect stays by a person's decision."""


_MAY_HAVE_LANDED: Final = frozenset(
    {StepState.BEGUN, StepState.DONE, StepState.REFUSED, StepState.UNKNOWN}
)


@dataclass(slots=True)
class StepRecord:
    """One step in the journal.

    A field that has its default is not stored, so a default never changes.
    """

    name: str
    state: StepState = StepState.PENDING
    attempts: int = 0
    begin_time: datetime | None = None
    end_time: datetime | None = None
    last_error: str = ""
    unreached: int = 0
    """How often in a row the call provably did not reach its service."""
    participant: str = ""
    """The service that carries the step out, as in the plan; '' for the local step."""
    request_id: str = ""
    """Its request_id there."""
    undoes: str = ""
    """The request_id that the step itself reverses; '' unless it belongs to a cancellation."""
    failures: int = 0
    """Failed attempts in a row, of the step or of its compensation."""
    first_failure_time: datetime | None = None
    """When the first of them failed; None without any, and if an earlier release counted it."""
    next_attempt_time: datetime | None = None
    """Until then the step waits, after a failed attempt."""
    waits_for: str = ""
    """What it waits for: a participant that did not reply, or the gateway behind one."""
    undo_begun: bool = False
    """A compensation may have arrived: the effect cannot stand any more."""
    fenced: bool = False
    """The cancellation of its payment is stored: it is never confirmed again."""
    standing_minor: int = 0
    standing_reason: str = ""

    @property
    def over(self) -> bool:
        """Whether it is done, has nothing to do, or stands."""
        return self.state in {StepState.DONE, StepState.SKIPPED, StepState.STANDING}

    @property
    def to_undo(self) -> bool:
        """Whether the step has begun, so that its effect may have happened, whatever the reply."""
        return self.state in _MAY_HAVE_LANDED

    def is_due(self, now: datetime) -> bool:
        """Whether the step does not wait after a failed attempt."""
        return self.next_attempt_time is None or self.next_attempt_time <= now

    def postpone(self, error: str, now: datetime, until: datetime, waits_for: str) -> None:
        """The step, or its compensation, did not succeed: try it again at ``until``."""
        if self.failures == 0:
            self.first_failure_time = now
        self.failures += 1
        self.last_error, self.next_attempt_time, self.waits_for = error, until, waits_for

    def succeed(self) -> None:
        """Nothing of it waits any more."""
        self.failures, self.first_failure_time = 0, None
        self.next_attempt_time, self.waits_for = None, ""


@dataclass(slots=True)
class Saga:
    """One attempt to pay an order, or the cancellation of a paid one."""

    saga_id: str
    kind: SagaKind
    plan_version: int
    order_id: str
    user_id: str
    asked: SagaInput
    steps: list[StepRecord]
    state: SagaState = SagaState.RUNNING
    facts: StepResults = field(default_factory=StepResults)
    failure: Failure | None = None
    """Set when the saga turns back, and never cleared: from then on it only compensates."""
    epoch: int = 1
    snapshot: int = 0
    """Rises with each write of the journal, so that a late older write cannot replace a newer."""
    attempts: int = 0
    """How often in a row the saga had to wait."""
    waits_for: list[str] = field(default_factory=list)
    """What its steps wait for; empty if one of them waits for nothing in particular."""
    time_left_s: float | None = None
    """When it was loaded: seconds in which it may still reach the pivot. None: no limit."""
    waits: bool = False
    """No replica runs it until its next attempt is due."""
    next_attempt_time: datetime | None = None
    last_error: str = ""
    resolution_reason: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None

    def step(self, name: str) -> StepRecord:
        for step in self.steps:
            if step.name == name:
                return step
        raise LookupError(name)

    @property
    def parts(self) -> Parts:
        """What each source pays. Raises AmountExceedsDue or PaymentKeyRequired."""
        return self.asked.parts(self.order_id, self.facts)

    @property
    def pay_saga_id(self) -> str:
        """The saga whose steps took what a compensation gives back."""
        return self.asked.pay_saga_id if isinstance(self.asked, CancelInput) else self.saga_id

    def money(self, amount_minor: int) -> Money:
        return Money(self.asked.currency_code, amount_minor)

    @property
    def gives_back(self) -> bool:
        """Whether the saga returns what was taken, instead of taking it."""
        return self.failure is not None or self.kind is SagaKind.CANCEL_ORDER

    @property
    def fences(self) -> bool:
        """Whether a person closed it and its order is not released yet."""
        return bool(self.resolution_reason) and self.state in LIVE

    def inserted_with(self, step: StepRecord) -> bool:
        """Whether the step was inserted as begun, and has not been called yet."""
        untouched = self.epoch == 1 and self.snapshot == 0 and self.failure is None
        return untouched and step.state is StepState.BEGUN

    # -- changes ---------------------------------------------------------------------------------

    def skip(self, step: StepRecord) -> None:
        """The step has nothing to do."""
        step.state = StepState.SKIPPED

    def begin(self, step: StepRecord, now: datetime) -> None:
        """The step is about to be called. Journal it before the call."""
        step.state = StepState.BEGUN
        step.attempts += 1
        step.begin_time = step.begin_time or now
        self._resume()

    def complete(self, step: StepRecord, results: StepResults, now: datetime) -> None:
        """The step has had its effect."""
        step.state, step.last_error = StepState.DONE, ""
        self.facts, self.last_error = results, ""
        self._succeed(step, now)

    def turn_back(self, refusal: Refusal) -> None:
        """Compensate from here on, because of ``refusal``."""
        self.failure = Failure.of(refusal)
        if self.state is SagaState.RUNNING:
            self.state = SagaState.COMPENSATING
        self.attempts, self.last_error = 0, describe(refusal)

    def refuse(self, step: StepRecord, refusal: Refusal, now: datetime) -> None:
        """The step was refused."""
        step.state, step.end_time, step.last_error = StepState.REFUSED, now, describe(refusal)

    def begin_undo(self, step: StepRecord) -> None:
        """The step's compensation is about to be called; its state stays until that is done."""
        step.attempts += 1
        if not step.undo_begun:
            # From here on they are failures of the compensation.
            step.failures, step.first_failure_time = 0, None
        step.undo_begun = True
        self._resume()

    def compensate(self, step: StepRecord, now: datetime) -> None:
        """The step's compensation has had its effect."""
        step.state = StepState.COMPENSATED
        self._succeed(step, now)

    def fence(self, step: StepRecord) -> None:
        """The cancellation of the step's payment is stored."""
        step.fenced = True
        step.last_error = ""
        step.succeed()
        self.attempts = 0

    def leave_unknown(self, step: StepRecord, error: str, *, unreached: bool = False) -> None:
        """The step's outcome is unknown, or its service provably was not reached."""
        step.state, step.last_error = StepState.UNKNOWN, error
        step.unreached = step.unreached + 1 if unreached else 0

    def wait(self, error: str, waits_for: Collection[str] = ()) -> None:
        """No step is due: let the saga wait in its row."""
        self.attempts += 1
        self.last_error, self.waits_for = error, sorted(waits_for)
        self.waits = True

    def flag(self) -> bool:
        """Report that a person should look; returns whether that is new. The saga continues."""
        if self.state not in {SagaState.RUNNING, SagaState.COMPENSATING}:
            return False
        self.state = SagaState.NEEDS_ATTENTION
        return True

    def retry(self) -> None:
        """Make every step that waits due now."""
        self.attempts = 0
        for step in self.steps:
            step.next_attempt_time = None

    def resolve(self, reason: str, failure: Refusal) -> None:
        """Undo all that has begun and does not stand, by a person's decision."""
        # Both reasons are kept, if an earlier release closed it before.
        before = self.resolution_reason
        self.resolution_reason = f"{before}; {reason}" if before else reason
        if self.state in {SagaState.RESOLVED, SagaState.RESOLVING}:
            # Its order is released.
            self.state = SagaState.RESOLVING
        elif self.kind is SagaKind.PAY_ORDER:
            self.failure = self.failure or Failure.of(failure)
            self.state = SagaState.COMPENSATING
        else:
            self.state = SagaState.RUNNING
        self.retry()

    def copy(self) -> Saga:
        """The saga as it is now: later changes of its state and steps are not in the copy."""
        return replace(self, steps=[replace(step) for step in self.steps])

    def closed(self, state: SagaState) -> Saga:
        """A copy in the state after its order moved. Its transaction may have to run again.

        It shares the records of steps, which no longer change.
        """
        steps = list(self.steps)
        return replace(self, steps=steps, state=state, waits=True, attempts=0, waits_for=[])

    def _resume(self) -> None:
        self.waits, self.next_attempt_time = False, None

    def _succeed(self, step: StepRecord, now: datetime) -> None:
        step.end_time = now
        step.succeed()
        self.attempts = 0


def describe(refusal: Refusal) -> str:
    """A refusal for operators: code and reason, and the gateway's own code if it refused."""
    parts = (refusal.code.value, refusal.reason, refusal.metadata.get("gateway_code", ""))
    return " ".join(part for part in parts if part)
