"""The decision of every command that changes orders."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta

from common.batching.decider import Decider, Saved
from common.batching.outcomes import Outcome, RowLocked
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.row_locks import AlsoRead, Locked, read_clock
from common.db.statements import Connection
from common.db.writes import execute_together
from common.ids import new_id
from common.request_key import RequestKey, Result
from order_service.errors import OpenOrdersLimit, OutOfStock
from order_service.model.order import (
    CancelOrder,
    CreateOrder,
    ExpireOrder,
    Order,
    OrderState,
    PayOrder,
)
from order_service.model.saga import Saga, SagaKind, SagaOwner, SagaRequest
from order_service.model.saga_command import CloseSaga, NoteFailure, ResolveSaga, RetrySaga
from order_service.store import journal as journal_store
from order_service.store import order as order_store
from order_service.store import product as product_store
from order_service.store import saga as saga_store
from order_service.store import seat as seat_store
from order_service.use_cases.order_batch import (
    OrderBatch,
    OrderCommand,
    product_ids_of,
    saga_id_of,
    seats_of,
)
from order_service.use_cases.saga_decisions import (
    ORDER_BODY,
    SagaBegun,
    begin_cancel,
    begin_payment,
    close_saga,
    close_saga_keys,
    find_begun,
    note_failure,
)
from order_service.use_cases.saga_resolution import resolve_saga, retry_saga
from order_service.use_cases.seat import require_seats

OrderResult = Result[Order | Saga | None] | SagaBegun


@dataclass(frozen=True, slots=True)
class OrderTimes:
    """The times that decisions about orders depend on."""

    expiry: timedelta
    """How long a new order may wait for its payment."""
    pay_within_s: float
    """How long an attempt to pay may take to reach its pivot."""
    saga_lease_s: float
    """The lease of a new saga."""


class OrderDecider(Decider[OrderCommand, OrderResult, OrderBatch]):
    """Decides batches of order commands."""

    def __init__(
        self,
        idempotency: IdempotencyStore,
        times: OrderTimes,
        *,
        owner: str,
        open_orders_max: int = 0,
    ) -> None:
        """``owner``: this replica's name, stored with the sagas that it begins.
        ``open_orders_max``: of a user; 0: no limit."""
        super().__init__(idempotency)
        self._times = times
        self._owner = owner
        self._open_orders_max = open_orders_max

    async def load(
        self,
        connection: Connection,
        commands: Sequence[OrderCommand],
        records: AlsoRead,
        *,
        wait_for_locks: bool,
    ) -> OrderBatch:
        """Lock orders, then products, then sagas, each ascending."""
        payments_alone = all(isinstance(one, PayOrder) for one in commands)
        orders = await order_store.lock(
            connection,
            {one.order_id for one in commands if not isinstance(one, CreateOrder)},
            wait_for_locks=wait_for_locks,
            also=records if payments_alone else None,
        )
        product_ids = {id_ for one in commands for id_ in product_ids_of(one, orders.found)}
        saga_ids = {id_ for one in commands if (id_ := saga_id_of(one)) is not None}
        products = await product_store.lock(
            connection,
            product_ids,
            wait_for_locks=wait_for_locks,
            also=None if saga_ids else records,
        )
        seats = {key for one in commands for key in seats_of(one, orders.found)}
        found_seats = await seat_store.find(connection, seats) if seats else {}
        sagas = await _lock_sagas(
            connection, commands, saga_ids, wait_for_locks=wait_for_locks, also=records
        )
        times = [loaded.now for loaded in (orders, products, sagas) if loaded.now is not None]
        return OrderBatch(
            orders.found,
            products.found,
            {id_: SagaOwner(saga.epoch, saga.state) for id_, saga in sagas.found.items()},
            {id_: saga for id_, saga in sagas.found.items() if isinstance(saga, Saga)},
            orders.blocked,
            products.blocked,
            sagas.blocked,
            max(times) if times else await read_clock(connection),
            seats=found_seats,
            open_orders=await self._count_open_orders(connection, commands),
        )

    async def _count_open_orders(
        self, connection: Connection, commands: Sequence[OrderCommand]
    ) -> dict[str, int]:
        """How many orders are open of each user whose number is limited.

        Nothing locks them: batches that other transactions commit at the same time are not counted.
        """
        users = {one.user_id for one in commands if isinstance(one, CreateOrder) and one.is_limited}
        if not (self._open_orders_max and users):
            return {}
        return await order_store.count_open(connection, users)

    async def load_after_records(
        self, connection: Connection, batch: OrderBatch, commands: Sequence[OrderCommand]
    ) -> None:
        """Find the sagas that earlier calls with these request_ids began, and who paid orders."""
        requests: set[SagaRequest] = set()
        paid: set[str] = set()
        for one in commands:
            if isinstance(one, PayOrder):
                requests.add(SagaRequest(SagaKind.PAY_ORDER, one.user_id, one.request_id))
            elif isinstance(one, CancelOrder) and (order := batch.orders.get(one.order_id)):
                if order.user_id != one.user_id:
                    continue  # refused as if there were none, and no statement tells that there is
                if order.state is OrderState.CANCELLING:
                    requests.add(SagaRequest(SagaKind.CANCEL_ORDER, one.user_id, one.request_id))
                elif order.state is OrderState.PAID:
                    paid.add(one.order_id)
        if requests:
            batch.sagas_by_request = await saga_store.find_by_request(connection, requests)
        if paid:
            batch.payers = await saga_store.find_payers(connection, paid)

    def keys(self, command: OrderCommand) -> Sequence[RequestKey]:
        match command:
            case ExpireOrder() | NoteFailure():
                return ()
            case CloseSaga():
                return close_saga_keys(command)
            case _:
                return (command.key,)

    def blocked(self, batch: OrderBatch, command: OrderCommand) -> Outcome[OrderResult] | None:
        row = _blocked_row(batch, command)
        if row is None:
            return None
        # The next sweep finds the order again: another transaction is about to move it.
        return Result(None) if isinstance(command, ExpireOrder) else RowLocked(row)

    def decide(
        self, batch: OrderBatch, records: IdempotencyRecords, command: OrderCommand
    ) -> OrderResult:
        match command:
            case CreateOrder():
                return self._create_order(batch, records, command)
            case PayOrder():
                return begin_payment(batch, records, command, pay_within_s=self._times.pay_within_s)
            case CancelOrder():
                return _cancel_order(batch, records, command)
            case ExpireOrder():
                return _expire_order(batch, command)
            case CloseSaga():
                return close_saga(batch, records, command)
            case NoteFailure():
                return note_failure(batch, command)
            case RetrySaga():
                return retry_saga(batch, records, command)
            case ResolveSaga():
                return resolve_saga(batch, records, command)

    def _create_order(
        self, batch: OrderBatch, records: IdempotencyRecords, command: CreateOrder
    ) -> Result[Order]:
        if (replayed := records.replay(command, ORDER_BODY)) is not None:
            return replayed
        most, open_orders = self._open_orders_max, batch.open_orders.get(command.user_id, 0)
        if most and command.is_limited and open_orders >= most:
            raise OpenOrdersLimit(command.user_id, open_orders=open_orders, most=most)
        products = [batch.product(line.product_id) for line in command.lines]
        order = Order.create(command, new_id(), products, now=batch.now, expiry=self._times.expiry)
        require_seats(command, products, batch.seats)
        short = [
            (item.product_id, free, item.quantity)
            for item in order.items
            if not item.seats and (free := batch.products[item.product_id].free) < item.quantity
        ]
        if short:
            raise OutOfStock(short)
        return records.answer(command, batch.add(order), ORDER_BODY)

    async def save(
        self,
        connection: Connection,
        batch: OrderBatch,
        commands: Sequence[OrderCommand],  # no row can conflict: all are locked
    ) -> Saved:
        orders = [(before, batch.orders[id_]) for id_, before in batch.loaded_orders.items()]
        products = [(before, batch.products[id_]) for id_, before in batch.loaded_products.items()]
        seats = [(before, batch.seats[key]) for key, before in batch.loaded_seats.items()]
        first = [
            *order_store.saving(orders),
            *product_store.saving(products),
            *order_store.adding(batch.new_orders),
            *journal_store.writing(batch.written_sagas.values()),
            # If they are not as loaded, the next attempt finds them taken.
            *seat_store.saving(seats),
            *seat_store.freeing(batch.without_seats),
        ]
        then = [
            *seat_store.adding_to_orders(batch.new_orders),
            *saga_store.adding(
                batch.new_sagas, owner=self._owner, lease_s=self._times.saga_lease_s
            ),
        ]
        if (batch.without_seats or batch.written_sagas) and then:
            # Seats that are given back and sagas that end come first: another order of the batch
            # may have the seat next, and an order has one live saga.
            await execute_together(connection, first)
            return Saved(then)
        return Saved([*first, *then])


async def _lock_sagas(
    connection: Connection,
    commands: Sequence[OrderCommand],
    saga_ids: Collection[str],
    *,
    wait_for_locks: bool,
    also: AlsoRead,
) -> Locked[str, Saga] | Locked[str, SagaOwner]:
    """Lock the sagas in one statement. Whole rows are read for operators only."""
    whole = any(isinstance(one, RetrySaga | ResolveSaga) for one in commands)
    lock = saga_store.lock if whole else saga_store.lock_owners
    return await lock(connection, saga_ids, wait_for_locks=wait_for_locks, also=also)


def _blocked_row(batch: OrderBatch, command: OrderCommand) -> tuple[str, str] | None:
    """The first row that the command needs and that another transaction has locked."""
    if not isinstance(command, CreateOrder) and command.order_id in batch.blocked_orders:
        return "order", command.order_id
    if batch.blocked_products:
        blocked = batch.blocked_products.intersection(product_ids_of(command, batch.orders))
        if blocked:
            return "product", min(blocked)
    saga_id = saga_id_of(command)
    return ("saga", saga_id) if saga_id is not None and saga_id in batch.blocked_sagas else None


def _cancel_order(
    batch: OrderBatch, records: IdempotencyRecords, command: CancelOrder
) -> Result[Order] | SagaBegun:
    order = batch.order_of(command)
    replayed = records.replay(command, ORDER_BODY)
    if replayed is not None:
        if replayed.value.state is not OrderState.CANCELLING:
            return replayed
        # The stored response says CANCELLING: the order may have changed since.
        if order.state is not OrderState.CANCELLING:
            return Result(order, replayed=True)
        return find_begun(batch, command, order)
    if order.state is OrderState.PAID:
        begun = begin_cancel(batch, command, order)
        records.answer(command, begun.order, ORDER_BODY)
        return begun
    if order.state not in {OrderState.CANCELLING, OrderState.CANCELLED}:
        order = batch.move(order.cancel(command.reason, batch.now))
    return records.answer(command, order, ORDER_BODY)


def _expire_order(batch: OrderBatch, command: ExpireOrder) -> Result[Order | None]:
    """No order if another command was first."""
    order = batch.orders.get(command.order_id)
    if order is None or not order.is_due(batch.now):
        return Result(None)
    return Result(batch.move(order.expire(batch.now)))
