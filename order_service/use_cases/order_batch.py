"""One batch of the order lane: orders, their products and their sagas, changed together.

Everything that changes an order goes through one lane, since an order changes together with the
stock of its products, and with the saga that pays or cancels it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from common.ids import is_id
from order_service.errors import OrderNotFound, ProductNotFound
from order_service.model.order import (
    TRANSITIONS,
    CancelOrder,
    CreateOrder,
    ExpireOrder,
    Order,
    OrderState,
    PayOrder,
)
from order_service.model.product import Product, StockMove
from order_service.model.saga import Saga, SagaOwner, SagaRequest
from order_service.model.saga_command import (
    CloseSaga,
    NoteFailure,
    ResolveSaga,
    RetrySaga,
    WriteSaga,
)
from order_service.model.seat import Seat, SeatKey

OrderCommand: TypeAlias = (
    CreateOrder
    | PayOrder
    | CancelOrder
    | ExpireOrder
    | CloseSaga
    | NoteFailure
    | RetrySaga
    | ResolveSaga
)


@dataclass(slots=True)
class OrderBatch:
    """The rows of one transaction, as its commands change them. Built anew for each attempt."""

    orders: dict[str, Order]
    products: dict[str, Product]
    owners: dict[str, SagaOwner]
    """Of all locked sagas, by saga_id."""
    sagas: dict[str, Saga]
    """Locked sagas, if the batch has commands about what is in their rows."""
    blocked_orders: frozenset[str]
    blocked_products: frozenset[str]
    blocked_sagas: frozenset[str]
    now: datetime
    """The database's clock, read after the rows were locked."""
    sagas_by_request: dict[SagaRequest, Saga] = field(default_factory=dict)
    """Sagas of the batch's PayOrder and CancelOrder requests, those begun in it included."""
    payers: dict[str, str] = field(default_factory=dict)
    """The saga that paid each paid order, by order_id."""
    new_orders: list[Order] = field(default_factory=list)
    new_sagas: list[Saga] = field(default_factory=list)
    written_sagas: dict[str, WriteSaga] = field(default_factory=dict)
    loaded_orders: dict[str, Order] = field(default_factory=dict)
    """Changed orders as they were loaded."""
    loaded_products: dict[str, Product] = field(default_factory=dict)
    """Changed products as they were loaded."""
    seats: dict[SeatKey, Seat] = field(default_factory=dict)
    loaded_seats: dict[SeatKey, Seat] = field(default_factory=dict)
    """Changed seats as they were loaded."""
    without_seats: set[str] = field(default_factory=set)
    """Orders that had seats, and have them no more."""
    open_orders: dict[str, int] = field(default_factory=dict)
    """How many open orders users have whose number is limited, those added included."""

    def order_of(self, command: PayOrder | CancelOrder) -> Order:
        """The user's order. Raises OrderNotFound, also if it is another user's."""
        order = self.orders.get(command.order_id)
        if order is None or order.user_id != command.user_id:
            raise OrderNotFound(order_id=command.order_id)
        return order

    def product(self, product_id: str) -> Product:
        """A locked product. Raises ProductNotFound."""
        product = self.products.get(product_id)
        if product is None:
            raise ProductNotFound(product_id=product_id)
        return product

    def add(self, order: Order) -> Order:
        """Add a new order and reserve its stock."""
        self._move_stock(order, StockMove.RESERVE)
        self.new_orders.append(order)
        self.open_orders[order.user_id] = self.open_orders.get(order.user_id, 0) + 1
        return order

    def move(self, order: Order) -> Order:
        """Replace an order by its next version, and move the stock as the transition demands."""
        before = self.orders[order.order_id]
        assert order.version == before.version + 1, "one transition at a time"
        stock_move = TRANSITIONS[before.state, order.state]
        if stock_move is not None:
            self._move_stock(order, stock_move)
        self.loaded_orders.setdefault(order.order_id, before)
        self.orders[order.order_id] = order
        return order

    def begin_saga(self, saga: Saga) -> Saga:
        """Add a new saga."""
        self.new_sagas.append(saga)
        request = SagaRequest(saga.kind, saga.user_id, saga.asked.request_id)
        self.sagas_by_request[request] = saga
        return saga

    def write_saga(self, saga: Saga) -> None:
        """Write a locked saga that no replica runs after this.

        If its epoch was raised, a replica that still runs it loses it.
        """
        saga.snapshot += 1
        before = self.written_sagas.get(saga.saga_id)
        epoch = self.owners[saga.saga_id].epoch if before is None else before.owned[1]
        # One write per row: the last command of the batch decides.
        self.written_sagas[saga.saga_id] = WriteSaga(saga, lease_s=0.0, from_epoch=epoch)
        # Later commands of the batch see its new state.
        self.owners[saga.saga_id] = SagaOwner(saga.epoch, saga.state)
        self.sagas[saga.saga_id] = saga

    def _move_stock(self, order: Order, stock_move: StockMove) -> None:
        for item in order.items:
            product = self.products[item.product_id]
            self.loaded_products.setdefault(item.product_id, product)
            moved = product.move(stock_move, item.quantity, self.now)
            self.products[item.product_id] = moved
            for label in item.seats:
                seat = self.seats[SeatKey(item.product_id, label)]
                self.loaded_seats.setdefault(seat.key, seat)
                self.seats[seat.key] = seat = seat.move(stock_move, order.order_id, moved.version)
                if seat.free:
                    self.without_seats.add(order.order_id)


def product_ids_of(command: OrderCommand, orders: dict[str, Order]) -> Collection[str]:
    """The products whose stock the command may move."""
    if isinstance(command, CreateOrder):
        return [line.product_id for line in command.lines if is_id(line.product_id)]
    order = orders.get(command.order_id)
    if order is None or isinstance(command, PayOrder | NoteFailure | RetrySaga | ResolveSaga):
        return ()
    if isinstance(command, CancelOrder) and order.state is not OrderState.PENDING:
        # A paid order gives its stock back when its cancellation ends.
        return ()
    return order.product_ids


def seats_of(command: OrderCommand, orders: dict[str, Order]) -> Collection[SeatKey]:
    """The seats that the command may move, of products that it locks."""
    if isinstance(command, CreateOrder):
        return command.seats
    return orders[command.order_id].seats if product_ids_of(command, orders) else ()


def saga_id_of(command: OrderCommand) -> str | None:
    """The saga that the command needs locked."""
    match command:
        case CloseSaga(saga) | NoteFailure(saga):
            return saga.saga_id
        case RetrySaga() | ResolveSaga():
            return command.saga_id
        case _:
            return None
