"""How the balance service keeps its operations apart: the whole strategy, in one table.

Charge, deduct and refund of one user share one key: under different keys a charge and a deduct of
the same account would not even queue behind each other.
"""

from __future__ import annotations

from typing import Final

from balance_service import tables
from balance_service.model import ChargeBalance, Command, DeductBalance, RefundDeduction
from common.locking import Rows, Strategy

ACCOUNT_KEY: Final = "balance:user:{user_id}"

STRATEGIES: Final[dict[type[Command], Strategy]] = {
    ChargeBalance: Strategy(
        redis_key=ACCOUNT_KEY,
        rows=Rows.VERSION,
        rounds_max=10,
        guards=(tables.AVAILABLE_NOT_NEGATIVE, tables.SEQUENCE_ONCE, tables.REQUEST_ONCE),
        why="Adding can always be repeated, so nobody needs to wait: the row's version tells who "
        "was first, and the others add again. The lock is taken anew for each round, never held "
        "through the pause between two.",
    ),
    DeductBalance: Strategy(
        redis_key=ACCOUNT_KEY,
        rows=Rows.FOR_UPDATE,
        rounds_max=1,
        guards=(tables.AVAILABLE_NOT_NEGATIVE, tables.SEQUENCE_ONCE, tables.REQUEST_ONCE),
        why="Whether the money is enough is decided on the locked row; a hundred deductions of "
        "one account at once all succeed, where versions would send most of them away.",
    ),
    RefundDeduction: Strategy(
        redis_key=ACCOUNT_KEY,
        rows=Rows.FOR_UPDATE,
        rounds_max=1,
        guards=(tables.REFUND_ONCE, tables.SEQUENCE_ONCE, tables.REQUEST_ONCE),
        why="It must see the deduction that is in flight, so it waits for the user's rows, and "
        "plants the cancellation under the same locks.",
    ),
}


def lock_key(command: Command) -> str | None:
    """The command's key on the first line of defence."""
    template = STRATEGIES[type(command)].redis_key
    return template and template.format(user_id=command.user_id)


def waits_for_rows(command: Command) -> bool:
    """Whether the command needs its rows locked before it is decided."""
    return STRATEGIES[type(command)].rows is Rows.FOR_UPDATE
