"""Orders: create, pay, cancel, expire, read, list and watch.

PayOrder and CancelOrder begin a saga and wait for its end. The saga does not depend on its caller:
if the caller's deadline passes or its connection is lost, the saga continues; the same request_id
later waits for it or gets its stored response.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Final, TypeAlias

from common import deadlines
from common.batching.loader import BatchLoader, load_by_id
from common.db.database import Database
from common.db.idempotency import IdempotencyStore
from common.db.repeat import read
from common.errors import RequestInProgress
from common.ids import is_id, new_id
from common.paging import Found, Page, TimePosition
from common.request_key import Result
from common.tasks import DetachedTasks, finished_within, result_of
from order_service.errors import OrderNotFound, ProductNotFound
from order_service.model.order import (
    CancelOrder,
    CreateOrder,
    Order,
    OrderState,
    PayOrder,
)
from order_service.saga.runner import Runner
from order_service.saga.running import SagaEnd
from order_service.store import order as store
from order_service.use_cases.expiry import Expiry
from order_service.use_cases.order_lane import OrderLane
from order_service.use_cases.saga_decisions import SagaBegun
from order_service.use_cases.watch import Watches

JOIN_S: Final = 5.0
"""How long a repetition waits for the first call with its request_id."""
MARGIN_S: Final = 0.1
"""The part of a caller's deadline that is kept for the reply."""

_Begun: TypeAlias = tuple[Result[Order] | SagaBegun, asyncio.Future[SagaEnd | None] | None]
"""A result, or a saga that has begun and its end if it runs in this replica."""


class Orders:
    """The orders of all users, as one replica writes and reads them."""

    def __init__(
        self,
        database: Database,
        lane: OrderLane,
        runner: Runner,
        watches: Watches,
        idempotency: IdempotencyStore,
    ) -> None:
        self._database = database
        self._found = BatchLoader("order", database, store.find_orders)
        self._lane = lane
        self._runner = runner
        self._watches = watches
        self._idempotency = idempotency
        self._detached = DetachedTasks("payments")
        self._expiry = Expiry(database, lane)

    async def close(self, limit_s: float) -> None:
        """Wait at most ``limit_s`` for sagas that are being begun, and for reads."""
        await self._detached.close(limit_s)
        await self._found.close()

    # -- writes ----------------------------------------------------------------------------------

    async def create(self, command: CreateOrder) -> Result[Order]:
        """Create the order and reserve its stock, or replay that.

        Raises ProductNotFound, OpenOrdersLimit, OutOfStock, SeatTaken, SeatNotFound, ProductSeated,
        ProductNotSeated, CurrencyMismatch, InvalidField, RequestIdReused,
        ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        command.check_seats()
        for line in command.lines:
            if not is_id(line.product_id):
                raise ProductNotFound(product_id=line.product_id)
        return await self._lane.submit(command)

    async def pay(self, command: PayOrder) -> Result[Order]:
        """Pay the order; returns when it is PAID, or replays that.

        A refusal is raised only after everything has been put back: that of the service which
        refused, or NotPaid if one did not answer. Raises OrderNotFound, OrderNotPayable,
        PaymentInProgress, CurrencyMismatch, AmountExceedsDue, PaymentKeyRequired and
        RequestIdReused before anything has begun, Overloaded if this replica can run no more sagas,
        and RequestInProgress if the caller's time is over first.
        """
        if not is_id(command.order_id):
            raise OrderNotFound(order_id=command.order_id)
        begun, end = await self._begin(replace(command, saga_id=new_id()))
        if isinstance(begun, Result):
            return begun
        first = begun.saga is not None
        try:
            ended = await self._wait_for_end(begun, end, None if first else JOIN_S)
        except TimeoutError:
            raise RequestInProgress(request_id=command.request_id) from None
        if ended is not None:
            if ended.failure is not None:
                raise ended.failure.refusal()
            return Result(ended.order, replayed=not first)
        # Another replica ended the saga: the lane replays its response, which a read may not do.
        stored = await self._submit(command)
        if isinstance(stored, SagaBegun):
            raise RequestInProgress(request_id=command.request_id)
        return replace(stored, replayed=not first)

    async def cancel(self, command: CancelOrder) -> Result[Order]:
        """Cancel the order, or replay that. A PAID one is returned when it is CANCELLED.

        If the caller's time is over first, the order is returned CANCELLING; so is one that
        another request cancels. Raises OrderNotFound, OrderNotCancellable, PaymentInProgress,
        RequestIdReused and what the lane raises.
        """
        if not is_id(command.order_id):
            raise OrderNotFound(order_id=command.order_id)
        begun, end = await self._begin(replace(command, saga_id=new_id()))
        if isinstance(begun, Result):
            return begun
        first = begun.saga is not None
        try:
            ended = await self._wait_for_end(begun, end, None if first else JOIN_S)
        except TimeoutError:
            return Result(begun.order, replayed=not first)
        if ended is not None:
            return Result(ended.order, replayed=not first)
        # Another replica ended the saga: the lane replays with its order, which a read may not do.
        stored = await self._submit(command)
        order = stored.order if isinstance(stored, SagaBegun) else stored.value
        return Result(order, replayed=not first)

    async def expire_due(self, stopping: asyncio.Event | None = None) -> int:
        """Expire the orders whose time has passed (``Expiry.run``)."""
        return await self._expiry.run(stopping)

    # -- the wait for a saga ---------------------------------------------------------------------

    async def _begin(self, command: PayOrder | CancelOrder) -> _Begun:
        """Begin the saga and run it here."""
        left_s = deadlines.remaining()

        async def begin() -> _Begun:
            with deadlines.within(left_s):
                begun = await self._submit(command)
            if isinstance(begun, Result) or begun.saga_id is None:
                return begun, None
            if begun.saga is None:
                return begun, self._runner.end_of(begun.saga_id)
            assert begun.saga.update_time is not None
            return begun, self._runner.start(begun.saga, begun.saga.update_time)

        # Detached: if the caller goes away now, the saga must run all the same.
        return await result_of(self._detached.start(begin()))

    async def _submit(self, command: PayOrder | CancelOrder) -> Result[Order] | SagaBegun:
        if isinstance(command, CancelOrder):
            return await self._lane.submit(command)
        uses_gateway = command.payment_key is not None
        with self._runner.beginning(uses_gateway=uses_gateway) as has_capacity:
            return await self._lane.submit(replace(command, has_capacity=has_capacity))

    async def _wait_for_end(
        self, begun: SagaBegun, end: asyncio.Future[SagaEnd | None] | None, limit_s: float | None
    ) -> SagaEnd | None:
        """Wait until the order has left the state in which the saga put it.

        Returns how the saga ended, if that happened in this replica. Raises TimeoutError if the
        time is over first.
        """
        left_s = deadlines.remaining()
        if left_s is not None:
            left_s = max(0.0, left_s - MARGIN_S)
            limit_s = left_s if limit_s is None else min(limit_s, left_s)
        clock = asyncio.get_running_loop().time
        until = None if limit_s is None else clock() + limit_s
        if end is not None:
            if until is not None and not await finished_within(end, until - clock()):
                raise TimeoutError
            if (ended := await result_of(end)) is not None:
                return ended
        # The saga waits in its row, or another replica runs it.
        async with (
            asyncio.timeout(None if until is None else until - clock()),
            aclosing(self._watches.follow(begun.order)) as versions,
        ):
            async for order in versions:
                if order.state is not begun.order.state:
                    break
        return None

    # -- reads -----------------------------------------------------------------------------------

    async def get_order(self, order_id: str, user_id: str | None) -> Order:
        """The order as last committed. Raises OrderNotFound, also if it is another user's.

        Without a user it may be anybody's.
        """
        order = await load_by_id(self._found, order_id)
        if order is None or (user_id is not None and order.user_id != user_id):
            raise OrderNotFound(order_id=order_id)
        return order

    async def list_orders(self, user_id: str, state: OrderState | None, page: Page) -> Found[Order]:
        """A page of the user's orders, newest first."""
        found = await read(
            self._database, lambda connection: store.read_orders(connection, user_id, state, page)
        )
        return Found(page, found, lambda order: TimePosition(order.create_time, order.order_id).key)

    async def watch(self, order_id: str, user_id: str) -> AsyncGenerator[Order]:
        """The order now and after each change, until it is settled. Raises OrderNotFound."""
        order = await self.get_order(order_id, user_id)
        async with aclosing(self._watches.follow(order)) as versions:
            async for version in versions:
                yield version
