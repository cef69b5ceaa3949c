"""Sagas: what was asked, how far it has come, and the moves of one. Pure: no I/O, no clock.

A saga is changed by the one replica that owns its epoch, in memory, and written down before each
call and after it. Times are the database's: a step's are ``NOW`` until the row is written.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

from common.errors import Code, FieldViolation, QuotaViolation, Refusal, RemoteRefusal
from common.money import Money
from order_service.errors import AmountExceedsDue, PaymentKeyRequired

Now = Literal["@now"]
NOW: Final[Now] = "@now"
"""The database's time of the write that carries it."""


class Kind(enum.StrEnum):
    """What a saga is to achieve."""

    PAY_ORDER = "PAY_ORDER"
    CANCEL_ORDER = "CANCEL_ORDER"


class State(enum.StrEnum):
    """Where a saga stands."""

    RUNNING = "RUNNING"
    COMPENSATING = "COMPENSATING"
    COMPLETED = "COMPLETED"
    COMPENSATED = "COMPENSATED"
    NEEDS_ATTENTION = "NEEDS_ATTENTION"
    RESOLVED = "RESOLVED"


LIVE: Final = (State.RUNNING, State.COMPENSATING, State.NEEDS_ATTENTION)
"""An order has at most one saga in these."""
MOVING: Final = (State.RUNNING, State.COMPENSATING)
"""Some replica is at work on these, or takes them over."""


class StepState(enum.StrEnum):
    """Where a step stands."""

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
    """One step as journalled."""

    name: str
    state: StepState = StepState.PENDING
    attempts: int = 0
    begin_time: datetime | Now | None = None
    end_time: datetime | Now | None = None
    last_error: str = ""
    unreached: int = 0
    """How often in a row its service provably was not reached."""

    @property
    def over(self) -> bool:
        """Nothing is left to do of it on the way forward."""
        return self.state in {StepState.DONE, StepState.SKIPPED}

    @property
    def to_undo(self) -> bool:
        """It was begun, so it may have landed, whatever its answer was."""
        return self.state in _MAY_HAVE_LANDED


@dataclass(frozen=True, slots=True)
class Facts:
    """What the steps brought to light."""

    discount_minor: int = 0
    payment_id: str | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What each source pays, in minor units of the order's currency."""

    discount_minor: int
    balance_minor: int
    gateway_minor: int


@dataclass(frozen=True, slots=True)
class PayAsked:
    """What PayOrder asked for, and what of the order its steps need."""

    request_id: str
    digest: str
    """Of the request, in hex: its repetition is told from another under the same id."""
    currency_code: str
    subtotal_minor: int
    coupon_id: str | None
    balance_minor: int | None
    payment_key: str | None

    @property
    def uses_coupon(self) -> bool:
        """There is nothing to take off an order that costs nothing."""
        return self.coupon_id is not None and self.subtotal_minor > 0

    def check(self, order_id: str) -> None:
        """Refuse what is certain to be refused before anything is begun.

        A coupon can only lower what is due. Raises AmountExceedsDue or PaymentKeyRequired.
        """
        if self.uses_coupon:
            if (self.balance_minor or 0) > self.subtotal_minor:
                raise AmountExceedsDue(order_id=order_id)
        else:
            self.parts(order_id, Facts())

    def parts(self, order_id: str, facts: Facts) -> Parts:
        """Who pays what is due now that the discount is known.

        Raises AmountExceedsDue or PaymentKeyRequired.
        """
        due_minor = self.subtotal_minor - facts.discount_minor
        balance_minor = self.balance_minor
        if balance_minor is None:
            balance_minor = due_minor if self.payment_key is None else 0
        if balance_minor > due_minor:
            raise AmountExceedsDue(order_id=order_id)
        if balance_minor < due_minor and self.payment_key is None:
            raise PaymentKeyRequired(order_id=order_id)
        return Parts(facts.discount_minor, balance_minor, due_minor - balance_minor)


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """What CancelOrder asked for, and how the order was paid."""

    request_id: str
    digest: str
    currency_code: str
    reason: str
    pay_saga_id: str
    """Whose steps are to be undone: their request_ids are ``<pay_saga_id>:<step>``."""
    coupon_id: str | None
    balance_minor: int
    gateway_minor: int

    @property
    def uses_coupon(self) -> bool:
        return self.coupon_id is not None

    def parts(self, order_id: str, facts: Facts) -> Parts:  # noqa: ARG002 - as PayAsked
        return Parts(0, self.balance_minor, self.gateway_minor)


Asked = PayAsked | CancelAsked


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed: the refusal its caller is told once everything is put back."""

    code: Code
    reason: str
    message: str
    metadata: dict[str, str]
    fields: tuple[FieldViolation, ...] = ()
    quota: tuple[QuotaViolation, ...] = ()

    @classmethod
    def of(cls, refusal: Refusal) -> Failure:
        """Without its RetryInfo: the attempt is kept, so its request_id will hear no other."""
        return cls(
            refusal.code,
            refusal.reason,
            refusal.message,
            dict(refusal.metadata),
            refusal.fields,
            refusal.quota,
        )

    def refusal(self) -> Refusal:
        return RemoteRefusal(
            self.code,
            self.reason,
            self.message,
            self.metadata,
            fields=self.fields,
            quota=self.quota,
        )


@dataclass(slots=True)
class Saga:
    """One attempt to pay an order, or the cancellation of a paid one."""

    saga_id: str
    kind: Kind
    plan_version: int
    order_id: str
    user_id: str
    asked: Asked
    steps: list[StepRecord]
    state: State = State.RUNNING
    facts: Facts = field(default_factory=Facts)
    failure: Failure | None = None
    """Set once the saga turns back, and never taken away: from then on it only undoes."""
    epoch: int = 1
    attempts: int = 0
    """In a row without success."""
    time_left_s: float | None = None
    """When it was loaded: how long it may still go forward before the pivot. None: for ever."""
    waits: bool = False
    """Nobody is at work on it until its next attempt is due."""
    next_attempt_time: datetime | None = None
    last_error: str = ""
    resolution_reason: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None

    def step(self, name: str) -> StepRecord:
        return next(step for step in self.steps if step.name == name)

    @property
    def parts(self) -> Parts:
        """Raises AmountExceedsDue or PaymentKeyRequired."""
        return self.asked.parts(self.order_id, self.facts)

    @property
    def pay_saga_id(self) -> str:
        """The saga whose steps took what there is to give back."""
        return self.asked.pay_saga_id if isinstance(self.asked, CancelAsked) else self.saga_id

    def money(self, amount_minor: int) -> Money:
        return Money(self.asked.currency_code, amount_minor)

    # -- moves -----------------------------------------------------------------------------------

    def skip(self, step: StepRecord) -> None:
        """There is nothing to do."""
        step.state = StepState.SKIPPED

    def begin(self, step: StepRecord) -> None:
        """It is about to be called; written down before it is."""
        step.state = StepState.BEGUN
        step.attempts += 1
        step.begin_time = step.begin_time or NOW
        self._goes_on()

    def done(self, step: StepRecord, facts: Facts) -> None:
        """It has had its effect."""
        step.state, step.end_time, step.last_error = StepState.DONE, NOW, ""
        self.facts = facts
        self.attempts, self.last_error = 0, ""

    def turn_back(
        self, refusal: Refusal, step: StepRecord | None = None, *, unknown: bool = False
    ) -> None:
        """Undo from here on; ``step`` is the one that was refused, or whose outcome is unknown."""
        if step is not None:
            step.state = StepState.UNKNOWN if unknown else StepState.REFUSED
            step.end_time = None if unknown else NOW
            step.last_error = told(refusal)
        self.failure = Failure.of(refusal)
        self.state = State.COMPENSATING
        self.attempts, self.last_error = 0, told(refusal)

    def begin_undo(self, step: StepRecord) -> None:
        """It is about to be undone. What it was is kept until it is: it may take many tries."""
        step.attempts += 1
        self._goes_on()

    def undone(self, step: StepRecord) -> None:
        step.state, step.end_time = StepState.COMPENSATED, NOW
        self.attempts = 0

    def unsettled(self, step: StepRecord, error: str, *, unreached: bool = False) -> None:
        """Begun, and what became of it could not be learnt, or it was not ``unreached``."""
        step.state, step.last_error = StepState.UNKNOWN, error
        step.unreached = step.unreached + 1 if unreached else 0

    def wait(self, error: str) -> None:
        """The current step, or its undoing, did not succeed: it is tried again later."""
        self.attempts += 1
        self.last_error = error
        self.waits = True

    def park(self, error: str) -> None:
        """A person has to look."""
        self.state, self.last_error, self.waits = State.NEEDS_ATTENTION, error, True

    def retry(self) -> None:
        """Go on where it stopped."""
        self.state = State.RUNNING if self.failure is None else State.COMPENSATING
        self.attempts = 0

    def closed(self, state: State, step: StepRecord | None = None) -> Saga:
        """As it is once the order has moved: a copy, since that transaction may be tried again."""
        steps = [
            replace(record, state=StepState.DONE, begin_time=record.begin_time or NOW, end_time=NOW)
            if record is step
            else replace(record)
            for record in self.steps
        ]
        return replace(self, state=state, steps=steps, waits=True)

    def _goes_on(self) -> None:
        self.waits, self.next_attempt_time = False, None


def told(refusal: Refusal) -> str:
    """An error as an operator reads it: code and reason."""
    return f"{refusal.code} {refusal.reason}".strip()


def records(names: Iterable[str]) -> list[StepRecord]:
    """A new saga's steps."""
    return [StepRecord(name) for name in names]
