"""The locking strategy of every balance operation, in one table.

Charge, deduct and refund of one user share one Redis key: under different keys, a charge and a
deduction of the same account would not wait for each other.
"""

from __future__ import annotations

from typing import Final

from balance_service import tables
from balance_service.model import ChargeBalance, Command, DeductBalance, RefundDeduction
from common.locking.strategy import RowStrategy, Strategies, Strategy

ACCOUNT_KEY: Final = "balance:user:{user_id}"

STRATEGIES: Final[Strategies] = {
    ChargeBalance: Strategy(
        redis_key=ACCOUNT_KEY,
        rows=RowStrategy.VERSION,
        rounds_max=10,
        guards=(
            tables.AVAILABLE_NOT_NEGATIVE,
            tables.AVAILABLE_WAS_CHARGED,
            tables.SEQUENCE_ONCE,
            tables.REQUEST_ONCE,
        ),
        why="A charge can always be repeated, so it need not wait: the row's version shows who "
        "was first, and the others add again. Each round takes the Redis lock anew; no pause "
        "between two rounds holds it.",
    ),
    DeductBalance: Strategy(
        redis_key=ACCOUNT_KEY,
        rows=RowStrategy.FOR_UPDATE,
        guards=(tables.AVAILABLE_NOT_NEGATIVE, tables.SEQUENCE_ONCE, tables.REQUEST_ONCE),
        why="Whether there is enough money is decided on the locked row: a hundred deductions of "
        "one account at once all succeed, where row versions would refuse most of them.",
    ),
    RefundDeduction: Strategy(
        redis_key=ACCOUNT_KEY,
        rows=RowStrategy.FOR_UPDATE,
        guards=(tables.REFUND_ONCE, tables.SEQUENCE_ONCE, tables.REQUEST_ONCE),
        why="It must see a deduction that is in flight, so it waits for the user's rows, and "
        "writes the tombstone under the same locks.",
    ),
}


def needs_row_lock(command: Command) -> bool:
    """Whether the command's rows are locked before it is decided."""
    return STRATEGIES[type(command)].rows is RowStrategy.FOR_UPDATE
