"""The sagas as tables. ``execution`` executes them.

``do`` carries a step out at its participant, whose ``undo`` compensates it; a step is skipped
unless ``needed``. Up to the pivot a failure turns the saga back: every step that has begun is
undone, the failed one included, since its effect may have happened. After the pivot the saga only
goes forward. The pivot's outcome is done, refused or unknown; an unknown one is called again,
neither undone nor guessed.

Forward, one step follows the other. What gives back does not depend on anything else: the
compensations of an attempt, and the steps of a cancellation, are called side by side, and each
succeeds, waits or is refused on its own.

The pivot is passed when it is done or skipped: an attempt without a gateway part is decided when
its deduction is done, and one without any part when it begins.

The last step is local: the order's transition, the end of the saga and its idempotency record are
one transaction, forward as well as back.

What is called first is begun in the transaction that begins the saga: the journal has it before the
call, without a write of its own.

A saga keeps its plan's version, the names of its steps, their participants and request_ids. A plan
that changes gets a new version, and the old one stays in ``PLANS`` until no saga of it is left; a
replica that does not know a saga's plan leaves it to one that does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, NamedTuple

from order_service.clients import (
    Services,
    StepCall,
    cancel_payment,
    confirm_payment,
    deduct_balance,
    fence_payment,
    redeem_coupon,
    refund_deduction,
    restore_coupon,
)
from order_service.model.order import Order
from order_service.model.saga import Saga, SagaKind, SagaState, StepRecord, StepState
from order_service.model.saga_input import CancelInput, PayInput, SagaInput, StepResults

Call = Callable[[Services, StepCall], Awaitable[StepResults]]


def _with_coupon(saga: Saga) -> bool:
    return saga.asked.uses_coupon


def _with_balance(saga: Saga) -> bool:
    return saga.parts.balance_minor > 0


def _with_gateway(saga: Saga) -> bool:
    return saga.parts.gateway_minor > 0


@dataclass(frozen=True, slots=True)
class Participant:
    """A service whose effects sagas undo."""

    name: str
    undo: Call
    fence: Call | None = None
    """Stores that the effect has to be undone, if undoing it may take long: after that it is
    certain to be."""


COUPON: Final = Participant("coupon", undo=restore_coupon)
BALANCE: Final = Participant("balance", undo=refund_deduction)
PAYMENT: Final = Participant("payment", undo=cancel_payment, fence=fence_payment)
PARTICIPANTS: Final = {one.name: one for one in (COUPON, BALANCE, PAYMENT)}


@dataclass(frozen=True, slots=True)
class Step:
    """A call to another service, made under the request_id ``<saga_id>:<name>``.

    The request_id of its compensation is ``<saga_id>:<name>:undo``.
    """

    name: str
    at: Participant
    do: Call
    needed: Callable[[Saga], bool]
    """May raise a refusal: the amount due is known only after the coupon is redeemed."""

    def call(self, saga: Saga) -> StepCall:
        return StepCall(saga, f"{saga.saga_id}:{self.name}", "")

    def describe(self, saga: Saga, record: StepRecord) -> None:
        """Store where the step is carried out, so that other releases can undo it too."""
        record.participant, record.request_id = self.at.name, f"{saga.saga_id}:{self.name}"


@dataclass(frozen=True, slots=True)
class Pivot(Step):
    """The step that decides: refused turns back, done goes forward, unknown is called again."""


@dataclass(frozen=True, slots=True)
class Reversal:
    """A step that compensates ``of``, a step of the saga that paid. It has no undo itself."""

    name: str
    of: str
    at: Participant
    needed: Callable[[Saga], bool]

    def describe(self, saga: Saga, record: StepRecord) -> None:
        """As ``Step.describe``."""
        record.participant, record.request_id = self.at.name, f"{saga.saga_id}:{self.name}"
        record.undoes = f"{saga.pay_saga_id}:{self.of}"


class GiveBack(NamedTuple):
    """One call that gives back what a step took."""

    record: StepRecord
    do: Call
    call: StepCall
    fences: bool
    """It only stores that the effect has to be undone."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one kind of saga, in order. The last step, ``close``, is local."""

    kind: SagaKind
    version: int
    steps: tuple[Step | Reversal, ...]
    close: str
    names: tuple[str, ...] = field(init=False)
    """Of all steps, the last one included."""

    def __post_init__(self) -> None:
        names = (*(step.name for step in self.steps), self.close)
        object.__setattr__(self, "names", names)

    def begin(self, saga_id: str, order: Order, asked: SagaInput, now: datetime) -> Saga:
        """A new saga of this plan, whose first calls have begun.

        Raises as ``next_step`` does.
        """
        assert isinstance(asked, PayInput if self.kind is SagaKind.PAY_ORDER else CancelInput)
        saga = Saga(
            saga_id=saga_id,
            kind=self.kind,
            plan_version=self.version,
            order_id=order.order_id,
            user_id=order.user_id,
            asked=asked,
            steps=[StepRecord(name) for name in self.names],
            create_time=now,
            update_time=now,
        )
        self.begin_first(saga, now)
        return saga

    def begin_first(self, saga: Saga, now: datetime) -> None:
        """Begin what is called first: one step of an attempt, all of a cancellation.

        A pivot begins by a write of its own: once it has begun, no attempt ends by being late, and
        whoever takes a saga over that was never called could charge at any later time.
        """
        self.describe_steps(saga)
        if saga.gives_back:
            first = [one.record for one in self.left_to_give_back(saga)]
        else:
            step = self.next_step(saga)
            first = [] if step is None or isinstance(step, Pivot) else [saga.step(step.name)]
        for record in first:
            saga.begin(record, now)

    def describe_steps(self, saga: Saga) -> None:
        """Store what a saga of an earlier release does not have."""
        for step, record in zip(self.steps, saga.steps, strict=False):
            if not record.participant:
                step.describe(saga, record)
                # That release did not store whether a compensation had been called.
                record.undo_begun = saga.failure is not None and record.to_undo

    def next_step(self, saga: Saga) -> Step | None:
        """The next step to do; skips those that are not needed. None: the saga has to be closed.

        Raises the refusal of an attempt that turns out to be impossible.
        """
        for step in self.steps:
            record = saga.step(step.name)
            if record.over or not isinstance(step, Step):
                continue
            if record.state is not StepState.PENDING or step.needed(saga):
                return step
            saga.skip(record)
        return None

    def left_to_give_back(self, saga: Saga) -> list[GiveBack]:
        """The calls that are left; skips steps of a cancellation that are not needed."""
        for step in self.steps:
            record = saga.step(step.name)
            pending = isinstance(step, Reversal) and record.state is StepState.PENDING
            if pending and not step.needed(saga):
                saga.skip(record)
        return list(_left_to_give_back(saga))

    def closed(self, saga: Saga, now: datetime) -> Saga:
        """The saga in the state after its order has moved."""
        closed = saga.closed(self.state_after(saga))
        if closed.state is SagaState.COMPLETED:
            # The plan's last step. A new record: the saga itself must not change.
            closed.steps[-1] = replace(
                closed.steps[-1], state=StepState.DONE, begin_time=now, end_time=now
            )
        return closed

    def state_after(self, saga: Saga) -> SagaState:
        """The saga's state after its order has moved; the last one if nothing is left to undo."""
        if saga.resolution_reason:
            left = any(_left_to_give_back(saga, fenced=True))
            return SagaState.RESOLVING if left else SagaState.RESOLVED
        return SagaState.COMPLETED if saga.failure is None else SagaState.COMPENSATED


def _left_to_give_back(saga: Saga, *, fenced: bool = False) -> Iterator[GiveBack]:
    """What the saga still has to undo. Independent of the plan: each step says where and what.

    While it fences, a payment counts as undone when its cancellation is stored, unless ``fenced``.
    """
    for record in saga.steps:
        participant = PARTICIPANTS.get(record.participant)
        if participant is None or (saga.fences and record.fenced and not fenced):
            continue
        fence = participant.fence if saga.fences else None
        if record.undoes and not record.over:
            call = StepCall(saga, record.request_id, record.undoes)
        elif not record.undoes and record.to_undo:
            call = StepCall(saga, f"{record.request_id}:undo", record.request_id)
        else:
            continue
        yield GiveBack(record, fence or participant.undo, call, fence is not None)


_PAY_STEPS: Final = (
    Step("redeem_coupon", COUPON, do=redeem_coupon, needed=_with_coupon),
    Step("deduct_balance", BALANCE, do=deduct_balance, needed=_with_balance),
    Pivot("confirm_payment", PAYMENT, do=confirm_payment, needed=_with_gateway),
)
# No pivot: the order is CANCELLING, so the decision is made and nothing turns back.
_CANCEL_STEPS: Final = (
    Reversal("cancel_payment", "confirm_payment", PAYMENT, needed=_with_gateway),
    Reversal("refund_deduction", "deduct_balance", BALANCE, needed=_with_balance),
    Reversal("restore_coupon", "redeem_coupon", COUPON, needed=_with_coupon),
)

PAY_ORDER: Final = Plan(SagaKind.PAY_ORDER, 2, _PAY_STEPS, close="complete_order")
CANCEL_ORDER: Final = Plan(SagaKind.CANCEL_ORDER, 2, _CANCEL_STEPS, close="cancel_order")
UNDO_ONLY_VERSION: Final = 0
"""Of a saga that a person closed and whose own plan is unknown: it can only give back."""

# Version 1, of the earlier release, has the same steps. Only version 2 has RESOLVING and STANDING.
PLANS: Final = {
    (plan.kind, version): plan for plan in (PAY_ORDER, CANCEL_ORDER) for version in (1, 2)
} | {(kind, UNDO_ONLY_VERSION): Plan(kind, UNDO_ONLY_VERSION, (), close="") for kind in SagaKind}


def current_plan(kind: SagaKind) -> Plan:
    """The plan with which sagas of this kind begin now."""
    return PAY_ORDER if kind is SagaKind.PAY_ORDER else CANCEL_ORDER


def plan_of(saga: Saga) -> Plan | None:
    """The plan that the saga began with; None if this release does not know it."""
    plan = PLANS.get((saga.kind, saga.plan_version))
    if plan is None or saga.plan_version == UNDO_ONLY_VERSION:
        return plan
    if plan.names != tuple(step.name for step in saga.steps):
        return None
    plan.describe_steps(saga)
    return plan
