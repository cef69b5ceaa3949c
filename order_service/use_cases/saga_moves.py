"""Where sagas and orders meet: a saga begins and ends in the transaction that moves its order.

    BeginPayment   PENDING → PAYING                       and the saga's row, RUNNING
    (CancelOrder)  PAID → CANCELLING                      and the saga's row, RUNNING
    CloseSaga      PAYING → PAID | PENDING | EXPIRED,     and the saga's end and its answer
                   CANCELLING → CANCELLED
    ResolveSaga    the same, by a person's word
    RetrySaga      the order stays as it is

These are handlers and the companion of the order lane; see ``order_lane``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from common.db.idempotency import REFUSED
from common.errors import CurrencyMismatch, Overloaded, RequestIdReused
from common.ids import new_id
from common.request_key import RequestKey
from order_service.errors import PaymentOutcomeUnknown, SagaNotFound, SagaNotRetryable
from order_service.model.orders import CancelOrder, Order, PayOrder
from order_service.model.orders import State as OrderState
from order_service.model.saga_commands import (
    BeginPayment,
    CloseSaga,
    PayAttempt,
    ResolveSaga,
    RetrySaga,
)
from order_service.model.sagas import (
    LIVE,
    MOVING,
    CancelAsked,
    Failure,
    Kind,
    PayAsked,
    Saga,
    State,
    records,
)
from order_service.saga import CANCEL_ORDER, PAY_ORDER, Plan, plan_of
from order_service.saga_journal import SagaLost
from order_service.store import saga_reads as whole
from order_service.store import sagas as rows
from order_service.use_cases.order_lane import (
    ORDER_BODY,
    Batch,
    Handler,
    OrderLane,
    Written,
    products_of_order,
)

FAILURE_BODY: Final[TypeAdapter[Failure]] = TypeAdapter(Failure)
"""How a refused attempt is kept in an answer."""
SAGA_BODY: Final[TypeAdapter[Saga]] = TypeAdapter(Saga)


@dataclass(frozen=True, slots=True)
class Underway(Written):
    """The attempt has begun and is not over; ``saga`` if this very call began it."""

    saga: Saga | None


@dataclass(frozen=True, slots=True)
class Told:
    """What an operator's command did to a saga."""

    saga: Saga
    replayed: bool


@dataclass(slots=True)
class _Loaded:
    """The sagas of one batch."""

    owned: dict[str, Saga] = field(default_factory=dict)
    """Locked."""
    asked: dict[rows.Request, Saga] = field(default_factory=dict)
    """By the request that began them, those of this batch included."""
    payers: dict[str, str] = field(default_factory=dict)
    """Of each paid order, the saga that paid it."""
    begun: list[rows.Begun] = field(default_factory=list)
    written: list[rows.Write] = field(default_factory=list)


# A lane decides its batches in tasks of its own, one at a time in each: what is loaded for one
# belongs to that task, while another task may be deciding commands that waited for a held row.
_loaded: ContextVar[_Loaded] = ContextVar("tally_loaded_sagas")


class SagaMoves:
    """The order lane's companion for sagas, and the handlers of their commands."""

    def __init__(self, lane: OrderLane, *, owner: str, lease_s: float, pay_within_s: float) -> None:
        """``pay_within_s``: how long an attempt to pay may take to reach its pivot."""
        self._owner = owner
        self._lease_s = lease_s
        self._pay_within_s = pay_within_s
        self._cancelling: dict[RequestKey, Saga] = {}
        lane.join(self)
        lane.register(BeginPayment, Handler(self._begin, keys=lambda begin: [begin.command.key]))
        lane.register(CloseSaga, Handler(_close, products=products_of_order, keys=_keys_of_close))
        lane.register(RetrySaga, Handler(_retry))
        lane.register(ResolveSaga, Handler(_resolve, products=products_of_order))

    # -- companion -------------------------------------------------------------------------------

    async def load(
        self,
        connection: AsyncConnection,
        commands: Sequence[Any],
        orders: Mapping[str, Order],
        *,
        wait_for_locks: bool,
    ) -> Mapping[int, Hashable]:
        loaded = _Loaded()
        _loaded.set(loaded)
        wanted = {position: _wanted(command) for position, command in enumerate(commands)}
        ids = {saga_id for saga_id in wanted.values() if saga_id is not None}
        held: set[str] = set()
        if ids:
            loaded.owned, held = await whole.lock_whole(
                connection, ids, wait_for_locks=wait_for_locks
            )
        begins = {_request(c.command) for c in commands if isinstance(c, BeginPayment)}
        if begins:
            loaded.asked = await whole.find(connection, begins)
        paid = {
            command.order_id
            for command in commands
            if isinstance(command, CancelOrder)
            and command.order_id in orders
            and orders[command.order_id].state is OrderState.PAID
        }
        if paid:
            loaded.payers = await whole.paying(connection, paid)
        return {
            position: ("saga", saga_id) for position, saga_id in wanted.items() if saga_id in held
        }

    async def save(self, connection: AsyncConnection, batch: Batch) -> None:  # noqa: ARG002
        loaded = _loaded.get()
        # What ends first: an order has one live saga, and another may begin in the same batch.
        await rows.write(connection, loaded.written)
        await rows.add(connection, loaded.begun)

    # -- begin -----------------------------------------------------------------------------------

    def _begin(self, batch: Batch, begin: BeginPayment) -> Written:
        command = begin.command
        order = batch.order_of(command)
        answer = batch.book.get(command.key)
        if answer is not None:
            body = answer.body_for(command)
            if answer.state == REFUSED:
                raise FAILURE_BODY.validate_json(body).refusal()
            return Written(ORDER_BODY.validate_json(body), replayed=True)
        saga = _loaded.get().asked.get(_request(command))
        if saga is not None:
            if saga.asked.digest != command.digest.hex() or saga.state not in LIVE:
                # Other content; or its answer is gone after its 30 days.
                raise RequestIdReused(request_id=command.request_id)
            # Its first epoch is this call's, whose commit's answer was lost; any other is not.
            own = saga.saga_id == begin.saga_id and saga.epoch == 1 and not saga.waits
            if own:
                saga.time_left_s = self._pay_within_s
            return Underway(order, replayed=not own, saga=saga if own else None)
        if not begin.has_room:
            raise Overloaded(lane="saga")
        asked = _asked(order, command)
        moved = order.begin_payment(
            batch.now, coupon_id=asked.coupon_id if asked.uses_coupon else None
        )
        if command.balance_amount is not None:
            _same_currency(order, command.balance_amount.currency_code)
        asked.check(order.order_id)
        saga = self._new_saga(PAY_ORDER, begin.saga_id, order, asked)
        saga.time_left_s = self._pay_within_s
        return Underway(batch.move(moved), replayed=False, saga=self._add(saga))

    def begin_cancel(self, batch: Batch, command: CancelOrder, order: Order) -> Order:
        """PAID → CANCELLING within the batch, with the saga that gives everything back."""
        before = self._cancelling.get(command.key)
        saga = self._new_saga(
            CANCEL_ORDER,
            # Decided again, it is the same saga: the first try's commit may have been the one.
            before.saga_id if before else new_id(),
            order,
            CancelAsked(
                request_id=command.request_id,
                digest=command.digest.hex(),
                currency_code=order.currency_code,
                reason=command.reason,
                pay_saga_id=_loaded.get().payers[order.order_id],
                coupon_id=order.coupon_id,
                balance_minor=order.paid_by_balance_minor,
                gateway_minor=order.paid_by_gateway_minor,
            ),
        )
        self._cancelling[command.key] = self._add(saga)
        return batch.move(order.begin_cancel(command.reason, batch.now))

    def begun_by(self, command: CancelOrder) -> Saga | None:
        """The saga that this command has begun, if it has: told once."""
        return self._cancelling.pop(command.key, None)

    def _new_saga(
        self, plan: Plan, saga_id: str, order: Order, asked: PayAsked | CancelAsked
    ) -> Saga:
        return Saga(
            saga_id=saga_id,
            kind=plan.kind,
            plan_version=plan.version,
            order_id=order.order_id,
            user_id=order.user_id,
            asked=asked,
            steps=records(plan.names),
        )

    def _add(self, saga: Saga) -> Saga:
        loaded = _loaded.get()
        loaded.begun.append(rows.Begun(saga, self._owner, self._lease_s))
        loaded.asked[saga.kind.value, saga.user_id, saga.asked.request_id] = saga
        return saga


def _wanted(command: Any) -> str | None:
    """The saga that the command needs locked."""
    if isinstance(command, CloseSaga):
        return command.saga.saga_id
    if isinstance(command, RetrySaga | ResolveSaga):
        return command.saga_id
    return None


def _request(command: PayOrder) -> rows.Request:
    return Kind.PAY_ORDER.value, command.user_id, command.request_id


def _asked(order: Order, command: PayOrder) -> PayAsked:
    amount = command.balance_amount
    return PayAsked(
        request_id=command.request_id,
        digest=command.digest.hex(),
        currency_code=order.currency_code,
        subtotal_minor=order.subtotal_minor,
        coupon_id=command.coupon_id,
        balance_minor=None if amount is None else amount.amount_minor,
        payment_key=command.payment_key,
    )


def _same_currency(order: Order, currency_code: str) -> None:
    if currency_code != order.currency_code:
        raise CurrencyMismatch(
            expected=order.currency_code, got=currency_code, order_id=order.order_id
        )


# -- end -----------------------------------------------------------------------------------------


def _keys_of_close(close: CloseSaga) -> list[RequestKey]:
    return [PayAttempt(close.saga).key] if close.saga.kind is Kind.PAY_ORDER else []


def _close(batch: Batch, close: CloseSaga) -> Any:
    row = _loaded.get().owned.get(close.saga.saga_id)
    if row is None or row.epoch != close.saga.epoch or row.state not in MOVING:
        return SagaLost()
    return Written(_end(batch, close.saga), replayed=False)


def _end(batch: Batch, saga: Saga) -> Order:
    """Move the order as the saga's way demands, answer the attempt, write the saga down."""
    order = batch.orders[saga.order_id]
    if saga.kind is Kind.CANCEL_ORDER:
        order = batch.move(order.complete_cancel(batch.now))
    elif saga.failure is not None:
        order = batch.move(order.return_to_pending(saga.failure.reason, batch.now))
        batch.book.refuse(PayAttempt(saga), FAILURE_BODY.dump_json(saga.failure).decode())
    else:
        order = batch.move(_paid(order, saga, batch))
        batch.book.answer(PayAttempt(saga), ORDER_BODY.dump_json(order).decode())
        _loaded.get().payers[order.order_id] = saga.saga_id
    loaded = _loaded.get()
    loaded.written.append(rows.Write.of(saga, 0.0))
    # For the commands after this one in the batch it has ended.
    loaded.owned[saga.saga_id] = saga
    return order


def _paid(order: Order, saga: Saga, batch: Batch) -> Order:
    parts = saga.parts
    return order.complete_payment(
        batch.now,
        discount_minor=parts.discount_minor,
        paid_by_balance_minor=parts.balance_minor,
        paid_by_gateway_minor=parts.gateway_minor,
        coupon_id=saga.asked.coupon_id if saga.asked.uses_coupon else None,
        payment_id=saga.facts.payment_id,
    )


# -- operators -----------------------------------------------------------------------------------


def _parked(batch: Batch, command: RetrySaga | ResolveSaga) -> Saga | Told:
    """The saga that needs attention, or what this request did before."""
    saga = _loaded.get().owned.get(command.saga_id)
    if saga is None:
        raise SagaNotFound(saga_id=command.saga_id)
    answer = batch.book.get(command.key)
    if answer is not None:
        return Told(SAGA_BODY.validate_json(answer.body_for(command)), replayed=True)
    if saga.state is not State.NEEDS_ATTENTION:
        raise SagaNotRetryable(saga_id=saga.saga_id, state=saga.state.value)
    return saga


def _retry(batch: Batch, command: RetrySaga) -> Told:
    saga = _parked(batch, command)
    if isinstance(saga, Told):
        return saga
    saga.retry()
    _loaded.get().written.append(rows.Write.of(saga, 0.0))
    return _answer(batch, command, replace(saga, next_attempt_time=batch.now))


def _resolve(batch: Batch, command: ResolveSaga) -> Told:
    saga = _parked(batch, command)
    if isinstance(saga, Told):
        return saga
    plan = plan_of(saga)
    if saga.kind is Kind.PAY_ORDER and saga.failure is None and not (plan and plan.decided(saga)):
        # Whether it was paid is not known here. The person has seen to it that it is not.
        saga.failure = Failure.of(PaymentOutcomeUnknown(order_id=saga.order_id))
    saga = saga.closed(State.RESOLVED)
    saga.resolution_reason = command.reason
    _end(batch, saga)
    return _answer(batch, command, saga)


def _answer(batch: Batch, command: RetrySaga | ResolveSaga, saga: Saga) -> Told:
    saga = replace(saga, update_time=batch.now)
    batch.book.answer(command, SAGA_BODY.dump_json(saga).decode())
    return Told(saga, replayed=False)
