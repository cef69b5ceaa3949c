"""The sagas as tables. ``execution`` executes them.

``do`` carries a step out and ``undo`` compensates it; a step is skipped unless ``needed``. Up to
the pivot a failure turns the saga back: every step that has begun is undone, the last first, the
failed one included, since its effect may have happened. After the pivot the saga only goes forward.
The pivot's outcome is done, refused or unknown; an unknown one is called again, neither undone nor
guessed.

The pivot is passed when it is done or skipped: an attempt without a gateway part is decided when
its deduction is done, and one without any part when it begins.

The last step is local: the order's transition, the end of the saga and its idempotency record are
one transaction, forward as well as back.

A saga keeps its plan's version and the names of its steps. A plan that changes gets a new version,
and the old one stays in ``PLANS`` until no saga of it is left; a replica that does not know a
saga's plan leaves it to one that does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from order_service.clients import (
    Services,
    StepCall,
    cancel_payment,
    confirm_payment,
    deduct_balance,
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
class Step:
    """A call to another service, made under the request_id ``<saga_id>:<name>``."""

    name: str
    do: Call
    undo: Call
    needed: Callable[[Saga], bool]
    """May raise a refusal: the amount due is known only after the coupon is redeemed."""

    def call(self, saga: Saga) -> StepCall:
        return StepCall(saga, f"{saga.saga_id}:{self.name}", "")

    def undo_call(self, saga: Saga) -> StepCall:
        done = f"{saga.saga_id}:{self.name}"
        return StepCall(saga, f"{done}:undo", done)


@dataclass(frozen=True, slots=True)
class Pivot(Step):
    """The step that decides: refused turns back, done goes forward, unknown is called again."""


@dataclass(frozen=True, slots=True)
class Reversal:
    """A step that compensates ``of``, a step of the saga that paid. It has no undo itself."""

    name: str
    of: str
    do: Call
    needed: Callable[[Saga], bool]

    def call(self, saga: Saga) -> StepCall:
        return StepCall(saga, f"{saga.saga_id}:{self.name}", f"{saga.pay_saga_id}:{self.of}")


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one kind of saga, in order. The last step, ``close``, is local."""

    kind: SagaKind
    version: int
    steps: tuple[Step | Reversal, ...]
    close: str

    @property
    def names(self) -> tuple[str, ...]:
        return (*(step.name for step in self.steps), self.close)

    def begin(self, saga_id: str, order: Order, asked: SagaInput, now: datetime) -> Saga:
        """A new saga of this plan."""
        assert isinstance(asked, PayInput if self.kind is SagaKind.PAY_ORDER else CancelInput)
        return Saga(
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

    def decided(self, saga: Saga) -> bool:
        """Whether the saga can only go forward: its pivot is passed, or it has none."""
        pivots = [step.name for step in self.steps if isinstance(step, Pivot)]
        return all(saga.step(name).over for name in pivots)

    def next_step(self, saga: Saga) -> Step | Reversal | None:
        """The next step to do; skips those that are not needed. None: the saga has to be closed.

        Raises the refusal of an attempt that turns out to be impossible.
        """
        for step in self.steps:
            record = saga.step(step.name)
            if record.over:
                continue
            if record.state is not StepState.PENDING or step.needed(saga):
                return step
            saga.skip(record)
        return None

    def next_undo(self, saga: Saga) -> Step | None:
        """The next step to undo: the last of those that have begun. None: all are undone."""
        for step in reversed(self.steps):
            if isinstance(step, Step) and saga.step(step.name).to_undo:
                return step
        return None

    def closed(self, saga: Saga, now: datetime) -> Saga:
        """The saga in its last state: COMPLETED, or COMPENSATED if it turned back."""
        if saga.failure is not None:
            return saga.closed(SagaState.COMPENSATED)
        closed = saga.closed(SagaState.COMPLETED)
        record = closed.step(self.close)
        record.state, record.begin_time, record.end_time = StepState.DONE, now, now
        return closed


PAY_ORDER: Final = Plan(
    SagaKind.PAY_ORDER,
    1,
    (
        Step("redeem_coupon", do=redeem_coupon, undo=restore_coupon, needed=_with_coupon),
        Step("deduct_balance", do=deduct_balance, undo=refund_deduction, needed=_with_balance),
        Pivot("confirm_payment", do=confirm_payment, undo=cancel_payment, needed=_with_gateway),
    ),
    close="complete_order",
)

# No pivot: the order is CANCELLING, so the decision is made and nothing turns back.
CANCEL_ORDER: Final = Plan(
    SagaKind.CANCEL_ORDER,
    1,
    (
        Reversal("cancel_payment", "confirm_payment", do=cancel_payment, needed=_with_gateway),
        Reversal("refund_deduction", "deduct_balance", do=refund_deduction, needed=_with_balance),
        Reversal("restore_coupon", "redeem_coupon", do=restore_coupon, needed=_with_coupon),
    ),
    close="cancel_order",
)

PLANS: Final = {(plan.kind, plan.version): plan for plan in (PAY_ORDER, CANCEL_ORDER)}


def plan_of(saga: Saga) -> Plan | None:
    """The plan that the saga began with; None if this release does not know it."""
    plan = PLANS.get((saga.kind, saga.plan_version))
    if plan is None or plan.names != tuple(step.name for step in saga.steps):
        return None
    return plan
