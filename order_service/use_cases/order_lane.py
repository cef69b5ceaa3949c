"""The one lane through which orders change, and with them the stock of their products.

Everything that moves an order is a command with a ``Handler``: create, cancel and expire here, the
sagas' steps next door. A batch goes:

    orders locked → their products locked → companions load → answers read
      → every command's handler, in order of arrival
        → orders and products saved → companions save → answers saved

A *companion* is a table that changes with orders in the same transaction (the sagas' rows).
Lock order: see ``order_service.locking``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from common.batching.lane import Lane
from common.batching.outcomes import RowLocked
from common.db.engines import Database
from common.db.errors import StaleRead
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.errors import ConflictRetriesExhausted, Refusal, RequestIdReused
from common.locking.locks import Locks
from common.request_key import IdempotentCommand, RequestKey
from order_service.errors import PaymentInProgress, order_not_found
from order_service.locking import lock_key
from order_service.model.orders import MOVES, Order
from order_service.model.products import Product, StockMove
from order_service.saga_tables import ONE_LIVE_PER_ORDER, SAGA_REQUEST_ONCE
from order_service.store import orders as order_rows
from order_service.store import products as product_rows
from order_service.tables import (
    ORDER_REQUEST_ONCE,
    STOCK_NOT_NEGATIVE,
    STOCK_NOT_OVERSOLD,
    answers,
)

ORDER_BODY: Final[TypeAdapter[Order]] = TypeAdapter(Order)
"""How an order is kept in an answer."""


class OrderCommand(Protocol):
    """What the lane must know of every command."""

    @property
    def order_id(self) -> str | None:
        """The order that it is about; None for a new one. Must have the form of an id."""


class OwnedCommand(Protocol):
    """A command that a user gives about an order of their own."""

    @property
    def order_id(self) -> str: ...

    @property
    def user_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did to an order."""

    order: Order
    replayed: bool


@dataclass(slots=True)
class Batch:
    """The orders and products of one transaction, as locked and as its commands change them.

    May be thrown away and built anew at any moment: keep nothing of it.
    """

    orders: dict[str, Order]
    products: dict[str, Product]
    book: IdempotencyRecords
    now: datetime
    """The database's clock, read when the rows were ours."""
    changed_products: dict[str, Product] = field(default_factory=dict)
    """The changed products as they were loaded."""
    changed_orders: dict[str, Order] = field(default_factory=dict)
    """The changed orders as they were loaded."""
    new_orders: list[Order] = field(default_factory=list)

    def order_of(self, command: OwnedCommand) -> Order:
        """The order that the command is about. Raises OrderNotFound, also if it is another's."""
        order = self.orders.get(command.order_id)
        if order is None or order.user_id != command.user_id:
            raise order_not_found(command.order_id)
        return order

    def add(self, order: Order) -> Order:
        """Take in a new order and reserve its stock."""
        self._move_stock(order, StockMove.RESERVE)
        self.new_orders.append(order)
        return order

    def move(self, order: Order) -> Order:
        """Take in an order's next version, with what its move does to the stock.

        The handler must have named its products, if the move concerns them.
        """
        before = self.orders[order.order_id]
        assert order.version == before.version + 1, "one move at a time"
        what = MOVES[before.state, order.state]
        if what is not None:
            self._move_stock(order, what)
        self.changed_orders.setdefault(order.order_id, before)
        self.orders[order.order_id] = order
        return order

    def replay(self, command: IdempotentCommand) -> Written | None:
        """The answer that the command was given before. Raises RequestIdReused."""
        answer = self.book.get(command.key)
        if answer is None:
            return None
        return Written(ORDER_BODY.validate_json(answer.body_for(command)), replayed=True)

    def answer(self, command: IdempotentCommand, order: Order) -> Written:
        """Answer the command with the order, now and whenever it is repeated."""
        self.book.answer(command, ORDER_BODY.dump_json(order).decode())
        return Written(order, replayed=False)

    def _move_stock(self, order: Order, what: StockMove) -> None:
        for item in order.items:
            product = self.products[item.product_id]
            self.changed_products.setdefault(item.product_id, product)
            self.products[item.product_id] = product.move(what, item.quantity, self.now)


def no_products(_command: Any, _order: Order | None) -> Iterable[str]:
    """For commands that move no stock."""
    return ()


def products_of_order(_command: Any, order: Order | None) -> Iterable[str]:
    """For commands that may move the stock of their order's products."""
    return () if order is None else order.product_ids


@dataclass(frozen=True, slots=True)
class Handler:
    """How one kind of command is decided."""

    decide: Callable[[Batch, Any], Any]
    """The outcome: any value is the caller's answer, a Refusal (returned or raised) refuses. Must
    replay by itself. Pure: no I/O, and no change before the last thing that may refuse."""
    products: Callable[[Any, Order | None], Iterable[str]] = no_products
    """The products it may change, given the locked order; all of them have the form of an id."""
    keys: Callable[[Any], Iterable[RequestKey]] = lambda command: [command.key]
    """The answers it consults."""
    when_held: Callable[[Any], Any] | None = None
    """The outcome if a row is held by somebody else; None: wait for it, apart from the batch."""


class Companion(Protocol):
    """Rows of another table that change in the transactions of orders."""

    async def load(
        self,
        connection: AsyncConnection,
        commands: Sequence[Any],
        orders: Mapping[str, Order],
        *,
        wait_for_locks: bool,
    ) -> Mapping[int, Hashable]:
        """Lock what the commands concern, in ascending order, after orders and products.

        Returns the positions of the commands whose row somebody else holds, with that row; empty
        if ``wait_for_locks``. Forget what an earlier batch left behind.
        """

    async def save(self, connection: AsyncConnection, batch: Batch) -> None:
        """Write what the handlers changed. Raising anything undoes the whole batch."""


class OrderLane:
    """Decides every command about orders on one replica."""

    def __init__(self, database: Database, locks: Locks) -> None:
        self._database = database
        self._answers = IdempotencyStore(answers)
        self._handlers: dict[type[Any], Handler] = {}
        self._companions: list[Companion] = []
        self._told: list[Callable[[Order], None]] = []
        self._lane: Lane[Any] = Lane(
            "order", database, self._decide, locks, lock_key=lock_key, translate=_translate
        )

    def register(self, command_type: type[Any], handler: Handler) -> None:
        """Have commands of this type decided by ``handler``. Before the first submit."""
        assert command_type not in self._handlers, f"two handlers for {command_type.__name__}"
        self._handlers[command_type] = handler

    def join(self, companion: Companion) -> None:
        """Have another table's rows changed with the orders."""
        self._companions.append(companion)

    def tell(self, listener: Callable[[Order], None]) -> None:
        """Call ``listener`` with orders that this replica has changed, after the commit."""
        self._told.append(listener)

    async def submit(self, command: OrderCommand) -> Any:
        """The command's outcome, or its refusal raised."""
        outcome = await self._lane.submit(command)
        if isinstance(outcome, Written) and not outcome.replayed:
            for listener in self._told:
                listener(outcome.order)
        return outcome

    async def close(self) -> None:
        """Refuse new commands and wait until those accepted are decided."""
        await self._lane.close()

    async def _decide(
        self, connection: AsyncConnection, commands: Sequence[Any], *, wait_for_locks: bool
    ) -> list[Any]:
        handlers = [self._handlers[type(command)] for command in commands]
        order_ids = {command.order_id for command in commands if command.order_id is not None}
        orders = await order_rows.load(connection, order_ids, wait_for_locks=wait_for_locks)

        touched = [
            set()
            if command.order_id in orders.held
            else set(handler.products(command, orders.orders.get(command.order_id)))
            for command, handler in zip(commands, handlers, strict=True)
        ]
        products = await product_rows.load(
            connection, set().union(*touched), wait_for_locks=wait_for_locks
        )
        held = _held(commands, touched, orders.held, products.held)
        for companion in self._companions:
            for position, row in (
                await companion.load(
                    connection, commands, orders.orders, wait_for_locks=wait_for_locks
                )
            ).items():
                held.setdefault(position, row)

        book = await self._answers.open(
            connection,
            [
                key
                for command, handler in zip(commands, handlers, strict=True)
                for key in handler.keys(command)
            ],
        )
        times = [time for time in (orders.now, products.now) if time is not None]
        now = max(times) if times else await product_rows.clock(connection)
        batch = Batch(orders.orders, products.products, book, now)
        outcomes = [
            _held_outcome(handler, command, held[position])
            if position in held
            else _outcome(handler, batch, command)
            for position, (handler, command) in enumerate(zip(handlers, commands, strict=True))
        ]
        await self._save(connection, batch)
        return outcomes

    async def _save(self, connection: AsyncConnection, batch: Batch) -> None:
        orders_saved = await order_rows.save(
            connection,
            [(before, batch.orders[order_id]) for order_id, before in batch.changed_orders.items()],
        )
        products_saved = await product_rows.save(
            connection,
            [
                (before, batch.products[product_id])
                for product_id, before in batch.changed_products.items()
            ],
        )
        if not (orders_saved and products_saved):
            raise StaleRead
        await order_rows.add(connection, batch.new_orders)
        for companion in self._companions:
            await companion.save(connection, batch)
        await batch.book.save(connection)


def _held(
    commands: Sequence[Any],
    touched: Sequence[set[str]],
    held_orders: set[str],
    held_products: set[str],
) -> dict[int, Hashable]:
    """By position, the row that a command has to wait for: its first held one."""
    held: dict[int, Hashable] = {}
    for position, (command, product_ids) in enumerate(zip(commands, touched, strict=True)):
        if command.order_id in held_orders:
            held[position] = ("order", command.order_id)
        elif waits_for := product_ids & held_products:
            held[position] = ("product", min(waits_for))
    return held


def _held_outcome(handler: Handler, command: Any, row: Hashable) -> Any:
    return RowLocked(row) if handler.when_held is None else handler.when_held(command)


def _outcome(handler: Handler, batch: Batch, command: Any) -> Any:
    try:
        return handler.decide(batch, command)
    except Refusal as refusal:
        return refusal


def _translate(constraint: str, command: Any) -> Refusal | None:
    """A violated constraint in the words of the contract."""
    if constraint in {ORDER_REQUEST_ONCE, SAGA_REQUEST_ONCE}:
        # The answer is gone after its 30 days; that it happened is known for good.
        return RequestIdReused(request_id=command.request_id)
    if constraint in {STOCK_NOT_OVERSOLD, STOCK_NOT_NEGATIVE}:
        # The rows were not what the model had seen: the lines before this one did not hold.
        return ConflictRetriesExhausted(lane="order")
    if constraint == ONE_LIVE_PER_ORDER:
        return PaymentInProgress(order_id=command.order_id)
    return None
