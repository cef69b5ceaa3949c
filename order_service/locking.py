"""How the order service keeps its operations apart: the whole strategy, in one table.

**One order of locks, everywhere**: orders ascending, then products ascending, then sagas ascending,
then answers ascending. A new order locks nothing: nobody else knows its id yet.
"""

from __future__ import annotations

from typing import Any, Final

from common.locking.strategy import RowStrategy, Strategy
from order_service import saga_tables, tables

USER_KEY: Final = "order:create:user:{user_id}"

_STOCK: Final = (tables.STOCK_NOT_OVERSOLD, tables.STOCK_NOT_NEGATIVE)

# By operation, not by the command's type: some commands belong to a layer above this one.
STRATEGIES: Final[dict[str, Strategy]] = {
    "CreateOrder": Strategy(
        redis_key=USER_KEY,
        rows=RowStrategy.FOR_UPDATE,
        rounds_max=1,
        guards=(*_STOCK, tables.ORDER_REQUEST_ONCE, tables.ITEM_ONCE),
        why="Whether there is enough of every product is decided on their locked rows, taken in "
        "ascending id order, so that A+B never waits for B+A. The key only keeps a user's own "
        "duplicates from crowding the rows.",
    ),
    "CancelOrder": Strategy(
        redis_key=None,
        rows=RowStrategy.CONDITIONAL_UPDATE,
        rounds_max=1,
        guards=(*_STOCK, tables.ORDER_STATE),
        why="Cancel, pay and expiry of one order meet on its row; the state found there decides "
        "who was first, and the write names that state and version again.",
    ),
    "BeginPayment": Strategy(
        redis_key=None,
        rows=RowStrategy.CONDITIONAL_UPDATE,
        rounds_max=1,
        guards=(tables.ORDER_STATE, saga_tables.ONE_LIVE_PER_ORDER, saga_tables.SAGA_REQUEST_ONCE),
        why="PENDING → PAYING while its time lasts, in one transaction with the new saga: of many "
        "attempts one finds the order PENDING.",
    ),
    "CloseSaga": Strategy(
        redis_key=None,
        rows=RowStrategy.CONDITIONAL_UPDATE,
        rounds_max=1,
        guards=(*_STOCK, tables.ORDER_STATE, tables.ORDER_PAID_IN_FULL),
        why="The order moves with the saga's end, and only if the saga's epoch is still the "
        "closer's: a replica that was paused finds another one's epoch and moves nothing.",
    ),
    "RetrySaga": Strategy(
        redis_key=None,
        rows=RowStrategy.FOR_UPDATE,
        rounds_max=1,
        guards=("answers_pkey",),
        why="Two operators at once meet on the saga's row; the second finds it no longer parked.",
    ),
    "ResolveSaga": Strategy(
        redis_key=None,
        rows=RowStrategy.FOR_UPDATE,
        rounds_max=1,
        guards=(*_STOCK, tables.ORDER_STATE, "answers_pkey"),
        why="As RetrySaga, and it moves the order as CloseSaga does.",
    ),
    "WriteSaga": Strategy(
        redis_key=None,
        rows=RowStrategy.CONDITIONAL_UPDATE,
        rounds_max=1,
        guards=("sagas_pkey",),
        why="The journal writes WHERE epoch = mine; a takeover raises the epoch, and from then on "
        "the old owner can write nothing and so begin nothing.",
    ),
    "TakeOverSagas": Strategy(
        redis_key=None,
        rows=RowStrategy.FOR_UPDATE,
        rounds_max=1,
        guards=("sagas_pkey",),
        why="Replicas sweep at once; each takes what the others have not locked (SKIP LOCKED), and "
        "raises its epoch.",
    ),
    "ExpireOrder": Strategy(
        redis_key=None,
        rows=RowStrategy.CONDITIONAL_UPDATE,
        rounds_max=1,
        guards=(*_STOCK, tables.ORDER_STATE),
        why="As cancel. Rows that somebody holds are left for the next sweep: whoever holds the "
        "order is about to move it.",
    ),
    "CreateProduct": Strategy(
        redis_key=None,
        rows=RowStrategy.INSERT,
        rounds_max=1,
        guards=("products_pkey", "answers_pkey"),
        why="A new row under a new id meets nobody; a duplicate meets the stored answer.",
    ),
    "RestockProduct": Strategy(
        redis_key=None,
        rows=RowStrategy.FOR_UPDATE,
        rounds_max=1,
        guards=_STOCK,
        why="It meets the orders of the same product on its row.",
    ),
    "SetCartItem": Strategy(
        redis_key=None,
        rows=RowStrategy.VERSION,
        rounds_max=1,
        guards=(tables.CART_ONCE,),
        why="Two tabs of one user seldom meet, and only the user knows which of them is right: "
        "the conflict is shown, not retried.",
    ),
    "ClearCart": Strategy(
        redis_key=None,
        rows=RowStrategy.VERSION,
        rounds_max=1,
        guards=(tables.CART_ONCE,),
        why="As SetCartItem.",
    ),
}


def lock_key(command: Any) -> str | None:
    """The command's key on the first line of defence."""
    strategy = STRATEGIES.get(type(command).__name__)
    template = strategy and strategy.redis_key
    return template.format(user_id=command.user_id) if template else None
