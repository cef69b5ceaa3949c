"""The other services and the journal of a saga, in memory, with every fault a test may want.

The services keep their promises as the real ones do: a request_id has one effect, and one that was
taken back, before or after, is refused for good. Which step a call belongs to they read from its
request_id, so that a step added to the table is tested without a change here.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from common.errors import Code, Refusal, RemoteRefusal
from order_service.clients import Services
from order_service.model.saga import (
    MOVING,
    Asked,
    CancelAsked,
    Kind,
    PayAsked,
    Saga,
    State,
    records,
)
from order_service.saga.plan import PLANS, Plan
from order_service.saga.journal import SagaLost
from order_service.saga.runner import Runner, SagaLimits
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.payment.v1 import payment_pb2
from tally.type.v1.money_pb2 import Money

SAGA_ID = "019a0000-0000-7000-8000-000000000001"
PAY_SAGA_ID = "019a0000-0000-7000-8000-000000000000"
ORDER_ID = "019a0000-0000-7000-8000-00000000000f"
DISCOUNT = 100

LIMITS = SagaLimits(backoff_s=0.0, backoff_max_s=0.0, attempts_max=8, unreached_max=2)

REFUSED = RemoteRefusal(Code.FAILED_PRECONDITION, "NO_THANKS", "refused", {"id": "x"})
LOST = RemoteRefusal(Code.UNAVAILABLE, "", "connection reset", {})
IN_PROGRESS = RemoteRefusal(Code.ABORTED, "PAYMENT_IN_PROGRESS", "ask again", {}, retry_after_s=1.0)
UNREACHED = RemoteRefusal(Code.UNAVAILABLE, "GATEWAY_UNAVAILABLE", "not reached", {})


class Crashed(BaseException):
    """The replica died here: nothing after this line of it happens."""


@dataclass
class Fault:
    """What goes wrong with a call, the first ``times`` times."""

    error: BaseException
    lands: bool = False
    """The effect happens all the same."""
    times: int = 1


@dataclass
class World:
    """What the other services know."""

    faults: dict[str, Fault] = field(default_factory=dict)
    """By step, or ``<step>:undo``."""
    calls: list[str] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    """Live effects by request_id."""
    cancelled: set[str] = field(default_factory=set)

    def services(self) -> Services:
        peer = cast("Any", _Peer(self))
        return Services(peer, peer, peer)

    async def call(self, method: str, request: Any) -> Any:
        step = request.request_id.partition(":")[2]
        self.calls.append(step)
        self.requests.append(request)
        fault = self.faults.get(step)
        if fault is not None and fault.times > 0:
            fault.times -= 1
            if fault.lands:
                self._effect(method, request)
            raise fault.error
        await asyncio.sleep(0)
        return self._effect(method, request)

    def _effect(self, method: str, request: Any) -> Any:
        about = [name for name in request.DESCRIPTOR.fields_by_name if name.endswith("_request_id")]
        if about:
            original = getattr(request, about[0])
            self.cancelled.add(original)
            if original in self.effects:
                self.effects.remove(original)
        elif request.request_id in self.cancelled:
            raise RemoteRefusal(Code.FAILED_PRECONDITION, "CANCELLED", "taken back", {})
        elif request.request_id not in self.effects:
            self.effects.append(request.request_id)
        return _RESPONSES.get(method, lambda: None)()


_RESPONSES: dict[str, Any] = {
    "RedeemCoupon": lambda: coupon_pb2.RedeemCouponResponse(
        discount=Money(currency_code="KRW", amount_minor=DISCOUNT)
    ),
    "DeductBalance": balance_pb2.DeductBalanceResponse,
    "ConfirmPayment": lambda: payment_pb2.ConfirmPaymentResponse(
        payment=payment_pb2.Payment(payment_id="payment-1")
    ),
}


class _Peer:
    """As common.rpc.client.Peer: ``peer.call(peer.stub.Method, request, …)``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.stub = _Stub()

    async def call(self, method: str, request: Any, **_: Any) -> Any:
        return await self._world.call(method, request)


class _Stub:
    def __getattr__(self, name: str) -> str:
        return name


@dataclass
class MemoryJournal:
    """The rows of the sagas, with epochs, and the states of their orders."""

    rows: dict[str, Saga] = field(default_factory=dict)
    orders: dict[str, str] = field(default_factory=dict)
    history: list[tuple[str, ...]] = field(default_factory=list)
    """The states of the steps, write by write."""
    crash_when: Any = None
    """Called with what is about to be written; true: the replica dies before it is."""
    refuses: list[Refusal] = field(default_factory=list)
    """What the next closings are refused with."""

    def add(self, saga: Saga) -> None:
        self.rows[saga.saga_id] = copy.deepcopy(saga)
        self.orders[saga.order_id] = "PAYING" if saga.kind is Kind.PAY_ORDER else "CANCELLING"

    async def write(self, saga: Saga, *, lease_s: float) -> None:
        await asyncio.sleep(0)
        self._put(saga)

    async def renew(self, saga: Saga, *, lease_s: float) -> None:
        self._mine(saga)

    async def take_over(self, *, lease_s: float, room: int) -> Sequence[Saga]:
        known = [row for row in self.rows.values() if (row.kind, row.plan_version) in PLANS]
        taken = [row for row in known if row.state in MOVING][:room]
        for row in taken:
            row.epoch += 1
        return copy.deepcopy(taken)

    async def close(self, saga: Saga) -> None:
        await asyncio.sleep(0)
        if self.refuses:
            raise self.refuses.pop()
        self._put(saga)
        ends = {
            (Kind.PAY_ORDER, State.COMPLETED): "PAID",
            (Kind.PAY_ORDER, State.COMPENSATED): "PENDING",
            (Kind.CANCEL_ORDER, State.COMPLETED): "CANCELLED",
        }
        self.orders[saga.order_id] = ends[saga.kind, saga.state]

    def _put(self, saga: Saga) -> None:
        if self.crash_when is not None and self.crash_when(saga):
            self.crash_when = None
            raise Crashed
        self._mine(saga)
        self.rows[saga.saga_id] = copy.deepcopy(saga)
        self.history.append(tuple(step.state.value for step in saga.steps))

    def _mine(self, saga: Saga) -> None:
        if self.rows[saga.saga_id].epoch != saga.epoch:
            raise SagaLost


def pay_asked(**changes: Any) -> PayAsked:
    """A payment that needs every step."""
    asked = {
        "request_id": "r1",
        "digest": "",
        "currency_code": "KRW",
        "subtotal_minor": 1_000,
        "coupon_id": "coupon-1",
        "balance_minor": 300,
        "payment_key": "key-1",
    }
    return PayAsked(**{**asked, **changes})


def cancel_asked(**changes: Any) -> CancelAsked:
    """The cancellation of an order that was paid in every way."""
    asked = {
        "request_id": "r2",
        "digest": "",
        "currency_code": "KRW",
        "reason": "changed my mind",
        "pay_saga_id": PAY_SAGA_ID,
        "coupon_id": "coupon-1",
        "balance_minor": 300,
        "gateway_minor": 600,
    }
    return CancelAsked(**{**asked, **changes})


def saga_of(plan: Plan, asked: Asked | None = None, *, time_left_s: float | None = 60.0) -> Saga:
    if asked is None:
        asked = pay_asked() if plan.kind is Kind.PAY_ORDER else cancel_asked()
    return Saga(
        SAGA_ID,
        plan.kind,
        plan.version,
        ORDER_ID,
        "ann",
        asked,
        records(plan.names),
        time_left_s=time_left_s,
    )


@dataclass
class Play:
    """One saga from its begin to its end, over as many replicas as it takes."""

    world: World
    journal: MemoryJournal
    saga: Saga
    replicas: int = 0

    @classmethod
    def of(cls, saga: Saga, world: World | None = None) -> Play:
        journal = MemoryJournal()
        journal.add(saga)
        return cls(world or World(), journal, saga)

    @property
    def row(self) -> Saga:
        return self.journal.rows[self.saga.saga_id]

    @property
    def order(self) -> str:
        return self.journal.orders[self.saga.order_id]

    def runner(self, limits: SagaLimits = LIMITS) -> Runner:
        return Runner(self.world.services(), self.journal, limits)

    async def run(self, sweeps_max: int = 20) -> Play:
        """Carry the saga on, a new replica taking over each time, until it stops."""
        runner = self.runner()
        runner.start(copy.deepcopy(self.saga))
        await settle(runner)
        while self.row.state in MOVING and self.replicas < sweeps_max:
            self.replicas += 1
            runner = self.runner()
            await runner.sweep()
            await settle(runner)
        return self


async def settle(runner: Runner) -> None:
    """Wait until the replica has done what it can, or has died."""
    while tasks := runner._tasks():
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(
                result, Crashed | asyncio.CancelledError
            ):
                raise result


def plans() -> list[Plan]:
    return list(PLANS.values())
