"""Sagas: the input, the progress of each step, and the changes of one saga.

The replica that owns a saga's epoch changes it in memory, and journals it before each call to
another service and after it. Times are the database's.
"""

from __future__ import annotations

import enum
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
    RESOLVED = "RESOLVED"


LIVE: Final = (SagaState.RUNNING, SagaState.COMPENSATING, SagaState.NEEDS_ATTENTION)
"""An order has at most one saga in these states."""
ACTIVE: Final = (SagaState.RUNNING, SagaState.COMPENSATING)
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


_MAY_HAVE_LANDED: Final = frozenset(
    {StepState.BEGUN, StepState.DONE, StepState.REFUSED, StepState.UNKNOWN}
)


@dataclass(slots=True)
class StepRecord:
    """One step in the journal."""

    name: str
    state: StepState = StepState.PENDING
    attempts: int = 0
    begin_time: datetime | None = None
    end_time: datetime | None = None
    last_error: str = ""
    unreached: int = 0
    """How often in a row the call provably did not reach its service."""

    @property
    def over(self) -> bool:
        """Whether the step is done or skipped."""
        return self.state in {StepState.DONE, StepState.SKIPPED}

    @property
    def to_undo(self) -> bool:
        """Whether the step has begun, so that its effect may have happened, whatever the reply."""
        return self.state in _MAY_HAVE_LANDED


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
    attempts: int = 0
    """Failed attempts in a row."""
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
        return next(step for step in self.steps if step.name == name)

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
        step.state, step.end_time, step.last_error = StepState.DONE, now, ""
        self.facts = results
        self.attempts, self.last_error = 0, ""

    def turn_back(self, refusal: Refusal) -> None:
        """Compensate from here on, because of ``refusal``."""
        self.failure = Failure.of(refusal)
        self.state = SagaState.COMPENSATING
        self.attempts, self.last_error = 0, describe(refusal)

    def refuse(self, step: StepRecord, refusal: Refusal, now: datetime) -> None:
        """The step was refused."""
        step.state, step.end_time, step.last_error = StepState.REFUSED, now, describe(refusal)

    def begin_undo(self, step: StepRecord) -> None:
        """The step's compensation is about to be called; its state stays until that is done."""
        step.attempts += 1
        self._resume()

    def compensate(self, step: StepRecord, now: datetime) -> None:
        """The step's compensation has had its effect."""
        step.state, step.end_time = StepState.COMPENSATED, now
        self.attempts = 0

    def leave_unknown(self, step: StepRecord, error: str, *, unreached: bool = False) -> None:
        """The step's outcome is unknown, or its service provably was not reached."""
        step.state, step.last_error = StepState.UNKNOWN, error
        step.unreached = step.unreached + 1 if unreached else 0

    def wait(self, error: str) -> None:
        """The current step, or its compensation, did not succeed: try again later."""
        self.attempts += 1
        self.last_error = error
        self.waits = True

    def park(self, error: str) -> None:
        """The saga needs the attention of a person."""
        self.state, self.last_error, self.waits = SagaState.NEEDS_ATTENTION, error, True

    def retry(self) -> None:
        """Continue a parked saga where it stopped."""
        self.state = SagaState.RUNNING if self.failure is None else SagaState.COMPENSATING
        self.attempts = 0

    def copy(self) -> Saga:
        """The saga as it is now: later changes of its state and steps are not in the copy."""
        return replace(self, steps=[replace(step) for step in self.steps])

    def closed(self, state: SagaState) -> Saga:
        """A copy in its last state. Not in place: its transaction may have to run again."""
        return replace(self.copy(), state=state, waits=True)

    def _resume(self) -> None:
        self.waits, self.next_attempt_time = False, None


def describe(refusal: Refusal) -> str:
    """A refusal for operators: code and reason."""
    return f"{refusal.code} {refusal.reason}".strip()
