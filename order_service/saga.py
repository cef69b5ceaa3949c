"""The sagas, as tables. What carries them out is ``saga_runner``.

A step is done by ``do`` and taken back by ``undo``; it is skipped unless ``needed``. Up to the
pivot a failure leads back: every step that was begun is undone, the last first, the one that
failed included, for it may have landed. From the pivot on there is only forward. A pivot's outcome
is done, refused or unknown; unknown is asked again, neither undone nor guessed.

The pivot is behind us when it is done, or skipped: an attempt without a gateway part turns for
good when its deduction is done, and one without any when it begins.

The last step is local: the order's move, the end of the saga and its stored answer are one
transaction, forward (``do``) as well as back (``undo``).

A saga keeps its plan's version and the names of its steps. A plan that changes gets a new version,
and the old one stays in ``PLANS`` until no saga of it is left; a replica that does not know a
saga's plan leaves it to one that does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from order_service.clients import Ask, Balances, Coupons, Payments, Services
from order_service.model.sagas import Facts, Kind, Saga, State, StepRecord, StepState

Call = Callable[[Services, Ask], Awaitable[Facts]]


def _with_coupon(saga: Saga) -> bool:
    return saga.asked.uses_coupon


def _with_balance(saga: Saga) -> bool:
    return saga.parts.balance_minor > 0


def _with_gateway(saga: Saga) -> bool:
    return saga.parts.gateway_minor > 0


@dataclass(frozen=True, slots=True)
class Step:
    """A call to another service, done under ``<saga_id>:<name>``."""

    name: str
    do: Call
    undo: Call
    needed: Callable[[Saga], bool]
    """May refuse the saga: what is due is known only after the coupon is redeemed."""

    def doing(self, saga: Saga) -> Ask:
        return Ask(saga, f"{saga.saga_id}:{self.name}", "")

    def undoing(self, saga: Saga) -> Ask:
        done = f"{saga.saga_id}:{self.name}"
        return Ask(saga, f"{done}:undo", done)


@dataclass(frozen=True, slots=True)
class Pivot(Step):
    """The step that decides: refused leads back, done leads forward, unknown is asked again."""


@dataclass(frozen=True, slots=True)
class TakeBack:
    """A step that takes back ``of``, a step of the saga that paid. It has no way back itself."""

    name: str
    of: str
    do: Call
    needed: Callable[[Saga], bool]

    def doing(self, saga: Saga) -> Ask:
        return Ask(saga, f"{saga.saga_id}:{self.name}", f"{saga.pay_saga_id}:{self.of}")


@dataclass(frozen=True, slots=True)
class Close:
    """The last step: the order's own move, in one transaction with the saga's end."""

    name: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one kind of saga, in order."""

    kind: Kind
    version: int
    steps: tuple[Step | TakeBack, ...]
    close: Close

    @property
    def names(self) -> tuple[str, ...]:
        return (*(step.name for step in self.steps), self.close.name)

    def decided(self, saga: Saga) -> bool:
        """Whether there is only forward: the pivot is behind, or there never was one."""
        pivots = [step.name for step in self.steps if isinstance(step, Pivot)]
        return all(saga.step(name).over for name in pivots)

    def advance(self, saga: Saga) -> Step | TakeBack | None:
        """The step to do now, those with nothing to do skipped; None: it only has to be closed.

        Raises the refusal of an attempt that asks for what cannot be, now that more is known.
        """
        for step in self.steps:
            record = saga.step(step.name)
            if record.over:
                continue
            if record.state is not StepState.PENDING or step.needed(saga):
                return step
            saga.skip(record)
        return None

    def undoing(self, saga: Saga) -> Step | None:
        """The step to undo now: of those that were begun, the last. None: all are undone."""
        for step in reversed(self.steps):
            if isinstance(step, Step) and saga.step(step.name).to_undo:
                return step
        return None


PAY_ORDER: Final = Plan(
    Kind.PAY_ORDER,
    1,
    (
        Step("redeem_coupon", do=Coupons.redeem, undo=Coupons.restore, needed=_with_coupon),
        Step("deduct_balance", do=Balances.deduct, undo=Balances.refund, needed=_with_balance),
        Pivot("confirm_payment", do=Payments.confirm, undo=Payments.cancel, needed=_with_gateway),
    ),
    Close("complete_order"),
)

# No pivot: the decision fell when the order became CANCELLING, so nothing leads back.
CANCEL_ORDER: Final = Plan(
    Kind.CANCEL_ORDER,
    1,
    (
        TakeBack("cancel_payment", "confirm_payment", do=Payments.cancel, needed=_with_gateway),
        TakeBack("refund_deduction", "deduct_balance", do=Balances.refund, needed=_with_balance),
        TakeBack("restore_coupon", "redeem_coupon", do=Coupons.restore, needed=_with_coupon),
    ),
    Close("cancel_order"),
)

PLANS: Final = {(plan.kind, plan.version): plan for plan in (PAY_ORDER, CANCEL_ORDER)}


def plan_of(saga: Saga) -> Plan | None:
    """The plan the saga was begun with; None if this release does not know it."""
    plan = PLANS.get((saga.kind, saga.plan_version))
    if plan is None or plan.names != tuple(step.name for step in saga.steps):
        return None
    return plan


def ending(saga: Saga) -> State:
    """The state in which the saga closes, by the way it goes."""
    return State.COMPLETED if saga.failure is None else State.COMPENSATED


def closing_step(saga: Saga) -> StepRecord | None:
    """The last step, which closing forward does and closing back does not."""
    return saga.steps[-1] if saga.failure is None else None
