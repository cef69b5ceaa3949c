"""Fakes of the services that a saga calls and of its journal, in memory.

As in the real services a request_id has one effect, and none after it was compensated. The step of
a call is in its request_id: a step added to a plan needs no change here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, cast
from unittest.mock import sentinel

from common.errors import Code, Refusal, RemoteRefusal
from order_service.clients import Services
from order_service.errors import SagaLost
from order_service.model.order import Order
from order_service.model.saga import ACTIVE, Saga, SagaKind, SagaState, StepRecord
from order_service.model.saga_input import CancelInput, PayInput, SagaInput
from order_service.saga.journal import SagaJournal
from order_service.saga.plan import PLANS, Plan, plan_of
from order_service.saga.runner import Runner
from order_service.saga.running import SagaEnd, SagaLimits
from order_service.store.journal import TakenOver
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.payment.v1 import payment_pb2
from tally.type.v1.money_pb2 import Money
from tests.support.gates import Gates

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
SAGA_ID: Final = "019a0000-0000-7000-8000-000000000001"
PAY_SAGA_ID: Final = "019a0000-0000-7000-8000-000000000000"
ORDER_ID: Final = "019a0000-0000-7000-8000-00000000000f"
DISCOUNT: Final = 100

ORDER: Final[Order] = sentinel.order
"""What every saga ends with."""
LIMITS: Final = SagaLimits(unreached_max=2)

REFUSED: Final = RemoteRefusal(Code.FAILED_PRECONDITION, "NO_THANKS", "refused", {"id": "x"})
LOST: Final = RemoteRefusal(Code.UNAVAILABLE, "", "connection reset", {})
IN_PROGRESS: Final = RemoteRefusal(
    Code.ABORTED, "PAYMENT_IN_PROGRESS", "try again", {}, retry_after_s=1.0
)
UNREACHED: Final = RemoteRefusal(Code.UNAVAILABLE, "GATEWAY_UNAVAILABLE", "not reached", {})
CIRCUIT_OPEN: Final = RemoteRefusal(
    Code.UNAVAILABLE, "GATEWAY_UNAVAILABLE", "not reached", {"circuit": "open"}, retry_after_s=1.0
)
OVERLOADED: Final = RemoteRefusal(
    Code.RESOURCE_EXHAUSTED, "OVERLOADED", "later", {}, retry_after_s=0.5
)
REFUND_REFUSED: Final = RemoteRefusal(
    Code.FAILED_PRECONDITION,
    "REFUND_REFUSED",
    "not cancellable",
    {"gateway_code": "NOT_CANCELABLE_PAYMENT"},
)


Errors: TypeAlias = dict[str, list[BaseException]]
"""What the next calls of a step, or ``<step>:undo``, fail with."""


class Crashed(BaseException):
    """The replica dies at this point."""


@dataclass
class FakeServices(Gates):
    """The other services, and the calls that they got."""

    errors: Errors = field(default_factory=dict)
    applied: bool = False
    """Whether calls that fail have their effect all the same."""
    calls: list[str] = field(default_factory=list)
    """By step."""
    requests: list[Any] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    """The request_ids that have an effect which is not compensated."""
    on_call: Callable[[str], None] = lambda _step: None
    """Called with the step of each call, when it arrives."""
    cancelled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def undos(self) -> list[str]:
        return [call for call in self.calls if call.endswith(":undo")]

    def clients(self) -> Services:
        client = cast("Any", _FakeClient(self))
        return Services(client, client, client)

    async def call(self, method: str, request: Any) -> Any:
        step = request.request_id.partition(":")[2]
        self.calls.append(step)
        self.requests.append(request)
        self.on_call(step)
        await self.pass_through(step)
        await asyncio.sleep(0)
        if errors := self.errors.get(step):
            if self.applied:
                self._apply(method, request)
            raise errors.pop(0)
        return self._apply(method, request)

    def _apply(self, method: str, request: Any) -> Any:
        compensated = [
            getattr(request, name)
            for name in request.DESCRIPTOR.fields_by_name
            if name.endswith("_request_id")
        ]
        if compensated:
            self.cancelled.update(compensated)
            self.effects = [each for each in self.effects if each not in compensated]
        elif request.request_id in self.cancelled:
            raise RemoteRefusal(Code.FAILED_PRECONDITION, "CANCELLED", "compensated", {})
        elif request.request_id not in self.effects:
            self.effects.append(request.request_id)
        return _RESPONSES.get(method, lambda: None)()


_RESPONSES: dict[str, Callable[[], Any]] = {
    "RedeemCoupon": lambda: coupon_pb2.RedeemCouponResponse(
        discount=Money(currency_code="KRW", amount_minor=DISCOUNT)
    ),
    "DeductBalance": balance_pb2.DeductBalanceResponse,
    "ConfirmPayment": lambda: payment_pb2.ConfirmPaymentResponse(
        payment=payment_pb2.Payment(payment_id="payment-1")
    ),
}


class _FakeClient:
    """A ``ServiceClient`` whose stub's methods are their names."""

    def __init__(self, services: FakeServices) -> None:
        self._services = services
        self.stub = _Names()

    async def call(self, method: str, request: Any, **_options: Any) -> Any:
        return await self._services.call(method, request)

    async def deduct(self, request: Any, **options: Any) -> None:
        await self.call("DeductBalance", request, **options)


class _Names:
    def __getattr__(self, name: str) -> str:
        return name


class MemoryJournal(SagaJournal):
    """The rows of sagas, fenced by epoch, and the states of their orders."""

    def __init__(self, *sagas: Saga) -> None:
        self.rows: dict[str, Saga] = {}
        self.orders: dict[str, str] = {}
        self.history: list[tuple[str, ...]] = []
        """The states of the steps, write by write."""
        self.crash_when: Callable[[Saga], bool] = lambda _saga: False
        """Called with what is about to be written; true: the replica dies before, once."""
        self.notes: list[str] = []
        """What orders show, reason by reason."""
        self.errors: dict[str, list[Exception]] = {}
        """What the next calls of a method fail with."""
        for saga in sagas:
            self.add(saga)

    def add(self, saga: Saga) -> None:
        self.rows[saga.saga_id] = saga.copy()
        self.orders[saga.order_id] = "PAYING" if saga.kind is SagaKind.PAY_ORDER else "CANCELLING"

    async def write(self, saga: Saga, *, lease_s: float) -> None:
        await self._fail("write")
        saga.snapshot += 1
        self._put(saga)

    async def renew(self, saga: Saga, *, lease_s: float) -> None:
        self._require_epoch(saga)

    async def take_over(
        self,
        *,
        lease_s: float,
        uses_gateway: bool,
        capacity: int,
        retries: int,
        away: Collection[str] = (),
    ) -> TakenOver:
        """As the real one, when every saga that waits is due."""
        due = [
            row
            for row in self.rows.values()
            if (row.kind, row.plan_version) in PLANS
            and row.state in ACTIVE
            and row.asked.uses_gateway is uses_gateway
        ]
        first = [row for row in due if not row.attempts][:capacity]
        again = [row for row in due if row.attempts]
        taken = first + again[: max(min(retries, capacity - len(first)), 0)]
        for row in taken:
            row.epoch += 1
            for step in row.steps:
                step.next_attempt_time = None
        return TakenOver([row.copy() for row in taken], NOW)

    async def close(self, saga: Saga) -> Order:
        await self._fail("close")
        plan = plan_of(saga)
        assert plan is not None
        closed = plan.closed(saga, NOW)
        self._put(closed)
        if saga.state is SagaState.RESOLVING:
            return ORDER
        if saga.kind is SagaKind.CANCEL_ORDER:
            self.orders[saga.order_id] = "CANCELLED"
        else:
            self.orders[saga.order_id] = "PENDING" if saga.failure else "PAID"
        return ORDER

    async def note(self, saga: Saga, reason: str) -> Order:
        self._require_epoch(saga)
        self.notes.append(reason)
        return ORDER

    async def _fail(self, method: str) -> None:
        await asyncio.sleep(0)
        if errors := self.errors.get(method):
            raise errors.pop(0)

    def _put(self, saga: Saga) -> None:
        if self.crash_when(saga):
            self.crash_when = lambda _saga: False
            raise Crashed
        self._require_epoch(saga)
        self.rows[saga.saga_id] = saga.copy()
        self.history.append(tuple(step.state.value for step in saga.steps))

    def _require_epoch(self, saga: Saga) -> None:
        if self.rows[saga.saga_id].epoch != saga.epoch:
            raise SagaLost


def pay_input(**changes: Any) -> PayInput:
    """A payment that needs every step."""
    values: dict[str, Any] = {
        "request_id": "r1",
        "digest": "",
        "currency_code": "KRW",
        "subtotal_minor": 1_000,
        "coupon_id": "coupon-1",
        "balance_minor": 300,
        "payment_key": "key-1",
    }
    return PayInput(**{**values, **changes})


CANCEL_INPUT: Final = CancelInput(
    request_id="r2",
    digest="",
    currency_code="KRW",
    reason="changed my mind",
    pay_saga_id=PAY_SAGA_ID,
    coupon_id="coupon-1",
    balance_minor=300,
    gateway_minor=600,
)
"""The cancellation of an order that was paid in every way."""


def saga_of(
    plan: Plan, asked: SagaInput | None = None, *, begun: bool = True, **fields: Any
) -> Saga:
    """A new saga that needs every step of the plan; not ``begun``: without its first calls."""
    if asked is None:
        asked = pay_input() if plan.kind is SagaKind.PAY_ORDER else CANCEL_INPUT
    values: dict[str, Any] = {
        "saga_id": SAGA_ID,
        "kind": plan.kind,
        "plan_version": plan.version,
        "order_id": ORDER_ID,
        "user_id": "ann",
        "asked": asked,
        "steps": [StepRecord(name) for name in plan.names],
        "time_left_s": 60.0,
        "create_time": NOW,
    }
    saga = Saga(**{**values, **fields})
    if begun:
        plan.begin_first(saga, NOW)
    else:
        plan.describe_steps(saga)
    return saga


class SagaRun:
    """One saga, executed by one replica after another until it stops."""

    def __init__(self, saga: Saga, errors: Errors | None = None, *, applied: bool = False) -> None:
        self.services = FakeServices(errors or {}, applied)
        self.journal = MemoryJournal(saga)
        self.saga = saga
        self.takeovers = 0

    @property
    def row(self) -> Saga:
        return self.journal.rows[self.saga.saga_id]

    @property
    def order(self) -> str:
        return self.journal.orders[self.saga.order_id]

    @property
    def failure(self) -> Refusal:
        assert self.row.failure is not None
        return self.row.failure.refusal()

    def runner(self, limits: SagaLimits = LIMITS) -> Runner:
        return Runner(self.services.clients(), self.journal, limits)

    def start(self, runner: Runner) -> asyncio.Future[SagaEnd | None]:
        return runner.start(self.saga.copy(), NOW)

    async def first(self) -> SagaEnd | None:
        """Let the first replica do what it can, until the saga ends there or the replica dies."""
        runner = self.runner()
        end = self.start(runner)
        await finish(runner)
        return await end

    async def run(self, takeovers_max: int = 20) -> SagaRun:
        """Execute the saga; a new replica takes it over each time it is left."""
        await self.first()
        return await self.go_on(takeovers_max)

    async def go_on(self, takeovers_max: int = 20) -> SagaRun:
        """Let new replicas take the saga over until it ends."""
        until = self.takeovers + takeovers_max
        while self.row.state in ACTIVE and self.takeovers < until:
            self.takeovers += 1
            runner = self.runner()
            await runner.sweep()
            await finish(runner)
        return self


async def finish(runner: Runner) -> None:
    """Wait until the replica has done what it can, or has died."""
    while tasks := runner._tasks():
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(
                result, Crashed | asyncio.CancelledError
            ):
                raise result
