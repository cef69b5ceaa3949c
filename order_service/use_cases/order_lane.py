"""The one lane through which orders change."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

from common.batching.lane import Lane
from common.db.database import Database
from common.errors import ConflictRetriesExhausted, Refusal, RequestIdReused
from common.locking.locks import Locks
from common.request_key import Result
from order_service.errors import PaymentInProgress
from order_service.locking import STRATEGIES
from order_service.model.order import CancelOrder, CreateOrder, ExpireOrder, Order, PayOrder
from order_service.model.saga import Saga
from order_service.model.saga_command import CloseSaga, NoteFailure, ResolveSaga, RetrySaga
from order_service.tables import (
    ONE_LIVE_PER_ORDER,
    ORDER_REQUEST_ONCE,
    SAGA_REQUEST_ONCE,
    SEAT_LIVE_ONCE,
    STOCK_NOT_NEGATIVE,
    STOCK_NOT_OVERSOLD,
)
from order_service.use_cases.order_batch import OrderCommand
from order_service.use_cases.order_decider import OrderDecider, OrderResult
from order_service.use_cases.saga_decisions import SagaBegun
from order_service.use_cases.seat import TakenSeats


class OrderLane:
    """The lane of one replica, and a notice of each order that it changed."""

    def __init__(
        self,
        database: Database,
        locks: Locks,
        decider: OrderDecider,
        on_change: Callable[[Order], None],
        taken_seats: TakenSeats | None = None,
    ) -> None:
        """``on_change`` is called with each changed order after the commit."""
        self._lane: Lane[OrderCommand, OrderResult] = Lane(
            "order",
            database,
            decider,
            locks,
            STRATEGIES,
            translate=_translate,
            refuse_early=taken_seats,
        )
        self._on_change = on_change

    @overload
    async def submit(self, command: CreateOrder | CloseSaga | NoteFailure) -> Result[Order]: ...
    @overload
    async def submit(self, command: PayOrder | CancelOrder) -> Result[Order] | SagaBegun: ...
    @overload
    async def submit(self, command: ExpireOrder) -> Result[Order | None]: ...
    @overload
    async def submit(self, command: RetrySaga | ResolveSaga) -> Result[Saga]: ...

    async def submit(self, command: OrderCommand) -> OrderResult:
        """The command's result, or its refusal raised."""
        result = await self._lane.submit(command)
        if isinstance(result, SagaBegun):
            if result.saga is not None:
                self._on_change(result.order)
        elif isinstance(result.value, Order) and not result.replayed:
            self._on_change(result.value)
        return result

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await self._lane.close()


def _translate(constraint: str, command: OrderCommand) -> Refusal | None:
    """The refusal for a violated constraint."""
    if constraint in {ORDER_REQUEST_ONCE, SAGA_REQUEST_ONCE}:
        assert isinstance(command, CreateOrder | PayOrder | CancelOrder)
        # The record was deleted after 30 days; the order or saga stays.
        return RequestIdReused(request_id=command.request_id)
    if constraint in {STOCK_NOT_OVERSOLD, STOCK_NOT_NEGATIVE, SEAT_LIVE_ONCE}:
        # The rows were not what the model saw: the lines of defence before this one failed.
        return ConflictRetriesExhausted(lane="order")
    if constraint == ONE_LIVE_PER_ORDER:
        assert isinstance(command, PayOrder | CancelOrder)
        return PaymentInProgress(order_id=command.order_id)
    return None
