"""Paying and cancelling orders: begin the saga, and wait for what becomes of it.

The saga does not need its caller. If the caller's time runs out, or its connection, the saga goes
on; the same request_id later joins it or hears its stored answer.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final

from common import deadlines
from common.errors import RequestInProgress
from common.ids import is_id, new_id
from common.tasks import DetachedTasks, result_of
from order_service.errors import order_not_found
from order_service.model.orders import CancelOrder, Order, PayOrder, State
from order_service.model.saga_commands import BeginPayment
from order_service.saga_runner import Runner
from order_service.use_cases.order_lane import OrderLane, Written
from order_service.use_cases.orders import Orders
from order_service.use_cases.saga_moves import SagaMoves, Underway
from order_service.use_cases.watches import Watches

JOIN_S: Final = 5.0
"""How long a repetition waits for the first call with its request_id."""
MARGIN_S: Final = 0.1
"""What is left of a caller's deadline for telling it how things stand."""


class Payments:
    """PayOrder and CancelOrder, seen from one replica."""

    def __init__(
        self, lane: OrderLane, orders: Orders, watches: Watches, moves: SagaMoves, runner: Runner
    ) -> None:
        self._lane = lane
        self._orders = orders
        self._watches = watches
        self._moves = moves
        self._runner = runner
        self._detached = DetachedTasks("payments")

    async def close(self, limit_s: float) -> None:
        """Wait for what is being begun."""
        await self._detached.close(limit_s)

    async def pay(self, command: PayOrder) -> Written:
        """Pay the order; answers when it is PAID, or replays that.

        A refusal is raised only after everything has been put back: that of the service which
        refused, or NotPaid if one did not answer. Raises OrderNotFound, OrderNotPayable,
        PaymentInProgress, CurrencyMismatch, AmountExceedsDue, PaymentKeyRequired and
        RequestIdReused before anything is begun, Overloaded if no more can be, RequestInProgress
        if the wait is over first.
        """
        if not is_id(command.order_id):
            raise order_not_found(command.order_id)
        begin = BeginPayment(command, new_id(), has_room=self._runner.has_room)
        # Detached: a caller that goes away at this moment must not leave a saga that nobody runs.
        left_s = deadlines.remaining()
        begun = await result_of(self._detached.begin(self._begin(begin, left_s)))
        first = False
        while isinstance(begun, Underway):
            first = first or begun.saga is not None
            if not await self._moved(begun.order, None if first else JOIN_S):
                raise RequestInProgress(request_id=command.request_id)
            # Asked again, the lane replays the answer that the saga has left, or its refusal.
            begun = await self._lane.submit(begin)
        written: Written = begun
        return Written(written.order, replayed=written.replayed and not first)

    async def cancel(self, command: CancelOrder) -> Written:
        """Cancel the order; of a PAID one, answers when it is CANCELLED, or when the time is up.

        Raises OrderNotFound, OrderNotCancellable, PaymentInProgress, RequestIdReused.
        """
        left_s = deadlines.remaining()
        cancelling = self._detached.begin(self._begin_cancel(command, left_s))
        written, begun = await result_of(cancelling)
        if written.order.state is not State.CANCELLING or not (begun or written.replayed):
            return written  # over, or somebody else's cancellation: told as it stands
        if await self._moved(written.order, None if begun else JOIN_S):
            order = await self._orders.get(command.order_id, command.user_id)
            return Written(order, replayed=written.replayed)
        return written

    async def _begin(self, begin: BeginPayment, left_s: float | None) -> Written:
        with deadlines.within(left_s):
            begun: Written = await self._lane.submit(begin)
        if isinstance(begun, Underway) and begun.saga is not None:
            self._runner.start(begun.saga)
        return begun

    async def _begin_cancel(
        self, command: CancelOrder, left_s: float | None
    ) -> tuple[Written, bool]:
        try:
            with deadlines.within(left_s):
                written = await self._orders.cancel(command)
        finally:
            saga = self._moves.begun_by(command)
        if saga is not None and written.order.state is State.CANCELLING:
            self._runner.start(saga)
        return written, saga is not None

    async def _moved(self, order: Order, limit_s: float | None) -> bool:
        """Wait until the order has left this version; whether it did so in time."""
        left_s = deadlines.remaining()
        if left_s is not None:
            left_s = max(0.0, left_s - MARGIN_S)
            limit_s = left_s if limit_s is None else min(limit_s, left_s)
        try:
            async with (
                asyncio.timeout(limit_s),
                aclosing(self._watches.follow(order)) as versions,
            ):
                async for version in versions:
                    if version.version > order.version:
                        return True
        except TimeoutError:
            pass
        return False
