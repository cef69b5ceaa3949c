"""The locking strategy of every payment operation, in one table.

Nothing is locked while the gateway is called. A confirmation is two transactions with the call
between them; the row of the claim keeps other requests away in the meantime.

A transaction locks in this order: advisory locks of keys and requests (ascending), payment rows
(ascending id), new rows (ascending payment_key), idempotency records (ascending). A payment that
does not exist yet has no row to lock. So a claim and the cancellation of the same request share an
advisory lock, and so do two claims of one key; the constraints are sufficient without them.
"""

from __future__ import annotations

import hashlib
from typing import Final

from common.locking.strategy import RowStrategy, Strategies, Strategy
from payment_service import tables
from payment_service.model.payment_command import (
    BeginConfirm,
    CancelPayment,
    Command,
    ConfirmPayment,
    RecordOutcome,
    ResolvePayment,
)

KEY_MARK: Final = "payment:key:{payment_key}"

STRATEGIES: Final[Strategies] = {
    ConfirmPayment: Strategy(
        rows=RowStrategy.INSERT,
        mark=KEY_MARK,
        guards=(tables.KEY_ONCE, tables.REQUEST_ONCE),
        why="The claim inserts the key's row before the gateway is called: a second request finds "
        "the row. The mark in Redis is not a lock: a request that finds it first reads the row "
        "without a transaction, and the row decides.",
    ),
    BeginConfirm: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        guards=(tables.OUTCOME, tables.DUE_WHILE_OPEN),
        why="The last moment before a confirm: it is sent only if the row, locked, has no "
        "cancellation and the caller has the lease. The time is stored, since this confirm may "
        "arrive at any time after it. A cancellation that commits later finds a confirm in "
        "transit, and every later one is refused here.",
    ),
    RecordOutcome: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        guards=(tables.OUTCOME, tables.DUE_WHILE_OPEN),
        why="The outcome is stored if the payment is still as it was when it was decided. What "
        "the gateway has certainly done counts without a lease too; only the holder of the lease "
        "frees the key or sets the next try.",
    ),
    CancelPayment: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        guards=(tables.REQUEST_ONCE, tables.CANCEL_REQUEST_ONCE, tables.DUE_WHILE_OPEN),
        why="The cancellation is stored first, for ever; whichever replica works on the payment, "
        "now or after a crash, carries it out. From then on no confirm is permitted. A payment "
        "that the gateway does not know may still be charged by a confirm in transit: the gateway "
        "is asked until it names a final status, or until the key cannot be confirmed any more. A "
        "charge that is found is given back.",
    ),
    ResolvePayment: Strategy(
        rows=RowStrategy.CONDITIONAL_UPDATE,
        guards=(tables.OUTCOME, tables.REFUNDED_AT_MOST_ONCE, tables.DUE_WHILE_OPEN),
        why="A person's statement is stored on the row as it is when it is locked, after a call to "
        "the gateway: what it reported before counts first, and so does what it reports later.",
    ),
}
BATCH_MAX: Final = 64
"""Commands of one batch. Each has up to two advisory locks, which live in shared memory."""


def advisory_keys(command: Command) -> tuple[int, ...]:
    """The advisory locks that the command needs before it is decided."""
    match command:
        case ConfirmPayment():
            return _key("key", command.payment_key), _request_key(command)
        case CancelPayment():
            return (_request_key(command),)
        case BeginConfirm() | RecordOutcome() | ResolvePayment():
            return ()


def _request_key(command: ConfirmPayment | CancelPayment) -> int:
    return _key("request", command.confirm_key.scope, command.confirm_key.request_id)


def _key(*parts: str) -> int:
    # Ids have no spaces. Two that have the same key by accident only wait for each other. Replicas
    # of two releases must have the same keys.
    digest = hashlib.blake2b(" ".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
