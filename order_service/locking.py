"""The locking strategy of every order operation, in one table.

**The lock order is the same everywhere**: orders ascending, then products ascending, then entries
of the stock journal ascending, then sagas ascending, then idempotency records ascending. A new
order locks no order row: no other command knows its id yet. Seats are not locked by themselves: the
lock of their product covers them. They are written, ascending, when all rows are locked.
"""

from __future__ import annotations

from typing import Final

from common.locking.strategy import RowStrategy, Strategies, Strategy
from order_service import tables
from order_service.model.cart import ClearCart, SetCartItem
from order_service.model.order import CancelOrder, CreateOrder, ExpireOrder, PayOrder
from order_service.model.product import CreateProduct, RestockProduct
from order_service.model.saga_command import (
    CloseSaga,
    NoteFailure,
    RenewLease,
    ResolveSaga,
    RetrySaga,
    RetrySagas,
    TakeOverSagas,
    WriteSaga,
)
from order_service.model.seat import AddSeats

USER_KEY: Final = "order:create:user:{user_id}"
SEAT_KEY: Final = "seat:{{{product_id}}}:{label}"
"""The product is the hash tag: the seats of one product are on one node of a cluster."""
_STOCK: Final = (tables.STOCK_NOT_OVERSOLD, tables.STOCK_NOT_NEGATIVE)

STRATEGIES: Final[Strategies] = {
    CreateOrder: Strategy(
        rows=RowStrategy.FOR_UPDATE,
        guards=(
            *_STOCK,
            tables.SEAT_LIVE_ONCE,
            tables.ORDER_REQUEST_ONCE,
            tables.ITEM_ONCE,
        ),
        redis_key=USER_KEY,
        redis_key_of_each=("seats", SEAT_KEY),
        many="seats",
        why="Whether there is enough of every product is decided on the locked rows, locked in "
        "ascending id order, so that A+B cannot deadlock with B+A. The user's key only keeps a "
        "user's own duplicates from contending for the rows. The lock of a product also serialises "
        "the orders of its seats, which are written WHERE version and state = those loaded. The "
        "keys of the seats keep those who lose off the transaction: they wait for the winner's "
        "commit, and a read without locks refuses them.",
    ),
    CancelOrder: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        guards=(*_STOCK, tables.ORDER_STATE),
        why="Cancellation, payment and expiry of one order contend for its row. The state found "
        "there decides who was first, and the write compares state and version again.",
    ),
    PayOrder: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        guards=(tables.ORDER_STATE, tables.ONE_LIVE_PER_ORDER, tables.SAGA_REQUEST_ONCE),
        why="PENDING → PAYING before the order expires, in one transaction with the new saga: of "
        "many attempts one finds the order PENDING.",
    ),
    CloseSaga: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        guards=(*_STOCK, tables.ORDER_STATE, tables.ORDER_PAID_IN_FULL),
        why="The order moves with the saga's end, and only if the saga still has the closer's "
        "epoch: a replica that was paused finds another epoch and moves nothing.",
    ),
    NoteFailure: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        guards=(tables.ORDER_STATE,),
        why="As CloseSaga; the order keeps its state.",
    ),
    RetrySaga: Strategy(
        rows=RowStrategy.FOR_UPDATE,
        guards=(tables.RECORD_ONCE,),
        why="It contends for the saga's row with the replica that runs it, and with the sweep.",
    ),
    RetrySagas: Strategy(
        rows=RowStrategy.FOR_UPDATE,
        guards=(tables.RECORD_ONCE,),
        why="Only sagas that wait, whose rows nobody has locked (SKIP LOCKED), are made due: a "
        "replica that takes one over reads it under a new epoch.",
    ),
    ResolveSaga: Strategy(
        rows=RowStrategy.FOR_UPDATE,
        guards=(tables.SAGA_ONCE, tables.RECORD_ONCE),
        why="Two operators contend for the saga's row; the second finds it resolved. The epoch "
        "rises in the same transaction: a replica that was paused writes and begins nothing.",
    ),
    WriteSaga: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        guards=(tables.SAGA_ONCE,),
        why="The journal writes WHERE epoch = the owner's. A takeover raises the epoch: from then "
        "on the old owner can write nothing, and so begin nothing.",
    ),
    RenewLease: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE, guards=(tables.SAGA_ONCE,), why="As WriteSaga."
    ),
    TakeOverSagas: Strategy(
        rows=RowStrategy.FOR_UPDATE,
        guards=(tables.SAGA_ONCE,),
        why="Several replicas sweep at once. Each takes the rows that the others have not locked "
        "(SKIP LOCKED), and raises their epoch.",
    ),
    ExpireOrder: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        guards=(*_STOCK, tables.ORDER_STATE),
        why="As CancelOrder. Locked rows are left for the next sweep: the transaction that has "
        "locked the order is about to move it.",
    ),
    CreateProduct: Strategy(
        rows=RowStrategy.INSERT,
        guards=(tables.PRODUCT_ONCE, tables.STOCK_ENTRY_ONCE, tables.RECORD_ONCE),
        why="A new row under a new id has no contender; a duplicate finds the stored response, or "
        "after 30 days the entry of the stock journal.",
    ),
    RestockProduct: Strategy(
        rows=RowStrategy.FOR_UPDATE,
        guards=(*_STOCK, tables.SEATS_ALL_OR_NONE, tables.STOCK_ENTRY_ONCE),
        why="It contends with the orders of the same product for its row. A duplicate is as that "
        "of CreateProduct.",
    ),
    AddSeats: Strategy(
        rows=RowStrategy.FOR_UPDATE,
        guards=(*_STOCK, tables.SEATS_ALL_OR_NONE, tables.SEAT_ONCE, tables.STOCK_ENTRY_ONCE),
        many="labels",
        why="As RestockProduct: which seats exist is read under the lock of the product.",
    ),
    SetCartItem: Strategy(
        rows=RowStrategy.VERSION,
        guards=(tables.CART_ONCE,),
        why="Two tabs of one user seldom conflict, and only the user knows which of them is "
        "right: the conflict is returned, not retried.",
    ),
    ClearCart: Strategy(
        rows=RowStrategy.VERSION, guards=(tables.CART_ONCE,), why="As SetCartItem."
    ),
}
