"""How the payment service keeps its operations apart: the whole strategy, in one table.

Nothing is held while the gateway is asked: a confirmation is two transactions with the call
between them, and what keeps others away meanwhile is the claim's own row.

A transaction takes, in this order: the places of keys and requests (advisory locks, ascending),
payment rows (ascending id), new rows (ascending key), answers (ascending). A payment that is not
there yet cannot be locked as a row, so that a claim and the cancellation of the same request meet
at its place, and two claims of one key at the key's; the constraints hold without them.
"""

from __future__ import annotations

import hashlib
from typing import Final

from common.locking.strategy import RowStrategy, Strategy
from payment_service import tables
from payment_service.model import CancelPayment, Command, ConfirmPayment, Settle

KEY_MARK: Final = "payment:key:{payment_key}"

STRATEGIES: Final[dict[type[Command], Strategy]] = {
    ConfirmPayment: Strategy(
        redis_key=KEY_MARK,
        rows=RowStrategy.INSERT,
        rounds_max=10,
        guards=(tables.KEY_ONCE, tables.REQUEST_ONCE),
        why="The key is claimed by inserting its row before the gateway is called: whoever comes "
        "second finds the row. The mark in Redis is no lock: it makes a duplicate look first, "
        "without a transaction, and what it sees in the database decides.",
    ),
    Settle: Strategy(
        redis_key=None,
        rows=RowStrategy.CONDITIONAL_UPDATE,
        rounds_max=10,
        guards=(tables.OUTCOME, tables.DUE_WHILE_OPEN),
        why="The outcome is stored where the payment is still as it was decided on. What the "
        "gateway is known to have done counts whoever brings it; only the holder of the lease "
        "frees the key or sets the next try.",
    ),
    CancelPayment: Strategy(
        redis_key=None,
        rows=RowStrategy.CONDITIONAL_UPDATE,
        rounds_max=10,
        guards=(tables.REQUEST_ONCE, tables.CANCEL_REQUEST_ONCE, tables.DUE_WHILE_OPEN),
        why="The wish is stored first, for good; whoever works on the payment, now or after a "
        "crash, carries it out. A payment the gateway does not know cannot be called unpaid, since "
        "a confirm may still be on its way: it is confirmed under its own idempotency key and "
        "then given back, after which a late one is only told the old answer.",
    ),
}
ROUNDS_MAX: Final = max(strategy.rounds_max for strategy in STRATEGIES.values())
BATCH_MAX: Final = 64
"""Advisory locks live in shared memory, at most two per command; row locks do not."""


def mark_of(command: ConfirmPayment) -> str:
    """The command's in-progress mark in Redis."""
    return KEY_MARK.format(payment_key=command.payment_key)


def places(command: Command) -> tuple[int, ...]:
    """Where the command must be alone before it is decided, rows or no rows."""
    match command:
        case ConfirmPayment():
            return (
                _place("key", command.payment_key),
                _place("request", command.user_id, command.request_id),
            )
        case CancelPayment():
            return (_place("request", command.user_id, command.confirm_request_id),)
        case Settle():
            return ()


def _place(*parts: str) -> int:
    # Ids have no spaces. Two that share a place by accident wait for each other, no more.
    digest = hashlib.blake2b(" ".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
