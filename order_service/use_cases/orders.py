"""Orders: created, cancelled, expired, read and followed. Their payment is the sagas'."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Final

from common.db.engines import Database, reading
from common.ids import is_id, new_id
from common.paging import Page
from order_service.errors import OutOfStock, order_not_found, product_not_found
from order_service.model.orders import CancelOrder, CreateOrder, ExpireOrder, Order, State
from order_service.model.products import Product
from order_service.store import order_reads as store
from order_service.use_cases import pages
from order_service.use_cases.order_lane import (
    Batch,
    Handler,
    OrderLane,
    Written,
    products_of_order,
)
from order_service.use_cases.watches import Watches

SWEEP_ROWS: Final = 256
"""Overdue orders taken at once: one batch of the lane."""

BeginCancel = Callable[[Batch, CancelOrder, Order], Order]
"""Begins the cancellation of a PAID order within the batch; returns the order, CANCELLING."""


class Orders:
    """The orders of all users, seen from one replica."""

    def __init__(
        self,
        database: Database,
        lane: OrderLane,
        watches: Watches,
        *,
        expiry: timedelta,
        begin_cancel: BeginCancel,
    ) -> None:
        """``expiry``: the time in which an order has to be paid."""
        self._database = database
        self._lane = lane
        self._watches = watches
        self._expiry = expiry
        self._begin_cancel = begin_cancel
        lane.register(CreateOrder, Handler(self._decide_create, products=_ordered_products))
        lane.register(CancelOrder, Handler(self._decide_cancel, products=_reserved_products))
        lane.register(
            ExpireOrder,
            Handler(
                _decide_expire,
                products=products_of_order,
                keys=lambda _: (),
                # Left for the next sweep: whoever holds it is about to move it.
                when_held=lambda _: None,
            ),
        )
        lane.tell(watches.tell)

    async def create(self, command: CreateOrder) -> Written:
        """Create the order and reserve its stock, or replay that.

        Raises ProductNotFound, OutOfStock, CurrencyMismatch, InvalidField, RequestIdReused,
        ConflictRetriesExhausted, DatabaseUnavailable or Overloaded.
        """
        for line in command.lines:
            if not is_id(line.product_id):
                raise product_not_found(line.product_id)
        written: Written = await self._lane.submit(command)
        return written

    async def cancel(self, command: CancelOrder) -> Written:
        """Cancel the order, or begin to if it is PAID, or replay that.

        An order that is CANCELLING or CANCELLED is returned as it is. Raises OrderNotFound,
        OrderNotCancellable, PaymentInProgress, RequestIdReused and what the lane raises.
        """
        if not is_id(command.order_id):
            raise order_not_found(command.order_id)
        written: Written = await self._lane.submit(command)
        return written

    async def expire_due(self, stopping: asyncio.Event | None = None) -> int:
        """Expire the orders whose time has passed; returns how many this replica did.

        Ends after the batch in which ``stopping`` is set.
        """
        total = 0
        while True:
            async with reading(self._database) as connection:
                due = await store.read_due(connection, size=SWEEP_ROWS)
            outcomes = await asyncio.gather(
                *(self._lane.submit(ExpireOrder(order_id)) for order_id in due)
            )
            expired = sum(outcome is not None for outcome in outcomes)
            total += expired
            stopped = stopping is not None and stopping.is_set()
            if len(due) < SWEEP_ROWS or not expired or stopped:
                return total

    async def get(self, order_id: str, user_id: str) -> Order:
        """The order as last committed. Raises OrderNotFound, also if it is another user's."""
        order = None
        if is_id(order_id):
            async with reading(self._database) as connection:
                order = await store.read_order(connection, order_id)
        if order is None or order.user_id != user_id:
            raise order_not_found(order_id)
        return order

    async def page_of(
        self, user_id: str, state: State | None, page: Page
    ) -> tuple[Sequence[Order], str]:
        """A page of the user's orders, newest first, and the next page's token ('' at the end)."""
        before = pages.before(page)
        async with reading(self._database) as connection:
            found = await store.read_orders(
                connection, user_id, state, before=before, size=page.size + 1
            )
        if len(found) <= page.size:
            return found, ""
        found = found[: page.size]
        return found, page.token(pages.last(found[-1].create_time, found[-1].order_id))

    async def watch(self, order_id: str, user_id: str) -> AsyncGenerator[Order]:
        """The order now and after each change, to its rest. Raises OrderNotFound."""
        order = await self.get(order_id, user_id)
        async with aclosing(self._watches.follow(order)) as versions:
            async for version in versions:
                yield version

    def _decide_create(self, batch: Batch, command: CreateOrder) -> Written:
        if (replayed := batch.replay(command)) is not None:
            return replayed
        products = [_product(batch, line.product_id) for line in command.lines]
        order = Order.create(command, new_id(), products, now=batch.now, expiry=self._expiry)
        short = [
            (item.product_id, batch.products[item.product_id].free, item.quantity)
            for item in order.items
            if batch.products[item.product_id].free < item.quantity
        ]
        if short:
            raise OutOfStock(short)
        return batch.answer(command, batch.add(order))

    def _decide_cancel(self, batch: Batch, command: CancelOrder) -> Written:
        order = batch.order_of(command)
        if (replayed := batch.replay(command)) is not None:
            # A cancellation that was still under way when it was answered has come further.
            underway = replayed.order.state is State.CANCELLING
            return Written(order, replayed=True) if underway else replayed
        if order.state is State.PAID:
            order = self._begin_cancel(batch, command, order)
        elif order.state not in {State.CANCELLING, State.CANCELLED}:
            order = batch.move(order.cancel(command.reason, batch.now))
        return batch.answer(command, order)


def _decide_expire(batch: Batch, command: ExpireOrder) -> Written | None:
    """None if somebody else was first."""
    order = batch.orders.get(command.order_id)
    if order is None or not order.is_due(batch.now):
        return None
    return Written(batch.move(order.expire(batch.now)), replayed=False)


def _product(batch: Batch, product_id: str) -> Product:
    product = batch.products.get(product_id)
    if product is None:
        raise product_not_found(product_id)
    return product


def _ordered_products(command: CreateOrder, _order: Order | None) -> Sequence[str]:
    return [line.product_id for line in command.lines]


def _reserved_products(_command: CancelOrder, order: Order | None) -> Sequence[str]:
    """Only a PENDING order gives its stock back at once."""
    if order is None or order.state is not State.PENDING:
        return ()
    return order.product_ids
