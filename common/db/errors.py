"""Errors of PostgreSQL and its driver: what failed, and what a caller may do about it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
from asyncpg.exceptions import (
    InterfaceError,
    InternalClientError,
    InvalidCachedStatementError,
    OutdatedSchemaCacheError,
    TargetServerAttributeNotMatched,
)
from prometheus_client import Counter

from common import logs
from common.errors import ConflictRetriesExhausted, DatabaseUnavailable, Overloaded, Refusal
from common.metrics import REGISTRY, from_zero

READY_TIMEOUT_S: Final = 1.5
"""Time limit of the readiness probe's statement. Less than the health probe's own limit
(``common.rpc.health``): here the cause is known."""

UNIQUE_VIOLATION: Final = "23505"
UNDEFINED_TABLE: Final = "42P01"
INSUFFICIENT_PRIVILEGE: Final = "42501"
LOCK_NOT_AVAILABLE: Final = "55P03"
READ_ONLY: Final = "25006"
DEADLOCK: Final = "40P01"
QUERY_CANCELED: Final = "57014"
_UNREACHABLE: Final = {
    READ_ONLY,  # a failover is under way and this is the old primary
    "25P03",  # idle_in_transaction_session_timeout
    "57P05",  # idle_session_timeout
    "57P01",
    "57P02",
    "57P03",
    "55000",  # the database accepts no connections: ALLOW_CONNECTIONS false
    # A pooler has led the session to a server that does not know its prepared statements, or knows
    # others of these names; or somebody has sent DISCARD ALL.
    "26000",
    "42P05",
}


_deadlocks = Counter(
    "tally_database_deadlocks",
    "Transactions that PostgreSQL ended to resolve a deadlock; they are run again.",
    registry=REGISTRY,
)
_violations = Counter(
    "tally_constraint_violations",
    "Transactions that a constraint ended, by constraint: the last guard held. Their commands are "
    "refused, or decided again.",
    ("constraint",),
    registry=REGISTRY,
)

_POOLER: Final = "unsupported startup parameter"
"""PgBouncer's answer to a session that asks for settings."""


_OF_NO_USE: Final = (
    OSError,  # TimeoutError is one
    # The driver met what it did not expect. Most often the server has announced the end of an idle
    # session, and the connection has not ended yet. The error has no SQLSTATE.
    InternalClientError,
    InvalidCachedStatementError,
    OutdatedSchemaCacheError,
)


class Fault(enum.Enum):
    """What a failed transaction means for the commands in it; values are labels of a metric."""

    COMMAND = "command"
    """One command broke a constraint or a type (SQLSTATE 22, 23): find it."""
    TAKEN = "taken"
    """A unique key exists already: run the batch again, which reads what took it; then find it."""
    HELD = "held"
    """Another transaction did not release a row within lock_timeout: find the command, and wait."""
    CONTENTION = "contention"
    """Deadlock, serialization failure or a stale read: run the same batch again."""
    CONNECTION = "connection"
    """The server is unreachable or did not answer: run the batch again. If the lost transaction
    had committed, the idempotency records say so."""
    SLOW = "slow"
    """A statement reached statement_timeout, and nothing was written: halve the batch, since one
    command may be what takes so long, or all of them together."""
    OVERLOAD = "overload"
    """No connection of the pool became free in time, and nothing was begun: this replica has too
    much to do. The server is not at fault."""
    UNEXPECTED = "unexpected"
    """A defect in Tally."""


class StaleRead(Exception):  # noqa: N818 - another writer was faster, which is no fault
    """A row changed between reading and writing: nothing of the batch may be kept.

    Locked rows cannot change; the comparison protects against a lock that was not taken. The batch
    runs again, as after a deadlock.
    """


class RecordConflict(Exception):  # noqa: N818 - another writer was first, which is no fault
    """Another transaction recorded one of these requests first: run the batch again."""


class CannotConnect(Exception):  # noqa: N818 - a state, not a fault
    """The server rejected a new session. The cause is the driver's error.

    Whatever its SQLSTATE is, no command is at fault.
    """


class ReadOnlyDatabase(Exception):  # noqa: N818 - a state, not a fault
    """The session is on a hot standby, or read-only by a setting of server, database or role."""


def count_violations_of(tables: sa.MetaData) -> None:
    """Export the constraints of a service's tables before the first violation."""
    for table in tables.tables.values():
        # PostgreSQL's own name of a primary key.
        names = {str(each.name or f"{table.name}_pkey") for each in table.constraints}
        names |= {str(each.name) for each in table.indexes if each.unique}
        from_zero(_violations, names)


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE that PostgreSQL returned, or ''."""
    return str(getattr(_of_driver(error), "sqlstate", None) or "")


def constraint_name(error: BaseException) -> str:
    """The name of the violated constraint, or ''."""
    return str(getattr(_of_driver(error), "constraint_name", None) or "")


def count_error(error: BaseException) -> None:
    """Count the deadlock or the violated constraint that ended a transaction, if it is one."""
    if sqlstate(error) == DEADLOCK:
        _deadlocks.inc()
    if name := constraint_name(error):
        _violations.labels(name).inc()


def _of_driver(error: BaseException) -> BaseException:
    """The driver's error, if another one wraps it: SQLAlchemy's, or CannotConnect."""
    if isinstance(error, CannotConnect):
        return error.__cause__ or error
    return getattr(getattr(error, "orig", None), "__cause__", None) or error


_FAULTS: Final = {
    UNIQUE_VIOLATION: Fault.TAKEN,
    LOCK_NOT_AVAILABLE: Fault.HELD,
    QUERY_CANCELED: Fault.SLOW,
    "40001": Fault.CONTENTION,
    DEADLOCK: Fault.CONTENTION,
}


def classify(error: BaseException) -> Fault:
    """The kind of fault that an exception from a transaction is."""
    if isinstance(error, CannotConnect):
        return Fault.CONNECTION
    state = sqlstate(error)
    if isinstance(error, RecordConflict):
        return Fault.TAKEN
    if isinstance(error, StaleRead):
        return Fault.CONTENTION
    if state in _FAULTS:
        return _FAULTS[state]
    if state[:2] in {"22", "23"}:
        return Fault.COMMAND
    if state[:2] in {"08", "28", "3D", "53", "58"} or state in _UNREACHABLE:
        # 28: rejected, since a password was changed; 3D: no such database; 53: out of connections,
        # memory or disk; 58: I/O. The server has the fault, not the command.
        return Fault.CONNECTION
    if isinstance(error, Overloaded):
        return Fault.OVERLOAD
    if isinstance(error, OSError) or is_lost(error):
        return Fault.CONNECTION
    if not state and type(_of_driver(error)).__module__.startswith("asyncpg"):
        # Without a SQLSTATE the server did not answer, or the driver could not connect.
        return Fault.CONNECTION
    return Fault.UNEXPECTED


def is_lost(error: BaseException) -> bool:
    """Whether a session is of no use after a driver's error, though the server may well be usable.

    The driver's time limit has passed, the connection broke, the server ended the session or was
    the primary before a failover, or the schema has changed since statements were prepared. A fresh
    session may succeed.
    """
    if isinstance(error, InterfaceError):
        return "closed" in str(error)  # others are defects, such as a second use at the same time
    state = sqlstate(error)
    return isinstance(error, _OF_NO_USE) or state[:2] == "08" or state in _UNREACHABLE


@contextmanager
def map_database_errors() -> Iterator[None]:
    """Raise the refusals that a lane returns for an unreachable or contended database.

    For SQL outside a lane. Raises DatabaseUnavailable, Overloaded or ConflictRetriesExhausted; any
    other error passes unchanged.
    """
    try:
        yield
    except Exception as error:
        fault = classify(error)
        if fault in {Fault.CONNECTION, Fault.SLOW}:
            raise DatabaseUnavailable from error
        if fault in {Fault.CONTENTION, Fault.HELD}:
            raise ConflictRetriesExhausted from error
        raise


_REASONS: Final = {
    Fault.CONNECTION: DatabaseUnavailable.reason,
    Fault.SLOW: "statement_timeout",
    Fault.OVERLOAD: Overloaded.reason,
    Fault.HELD: "lock_timeout",
    Fault.CONTENTION: ConflictRetriesExhausted.reason,
}


def failure_of(error: BaseException) -> str:
    """Why work without a caller failed, in one line for the log.

    The same failure has the same text each time, whatever the driver adds to it.
    """
    if isinstance(error, Refusal):
        return error.reason or error.code
    return _REASONS.get(classify(error)) or logs.masked(repr(error)[:200])


def describe_failure(error: BaseException, url: sa.URL) -> str:
    """Why the database at ``url`` cannot be used, in one line for the operator."""
    address = f"{url.host}:{url.port or 5432}"
    if isinstance(error, TimeoutError):
        return f"no answer from {address} within {READY_TIMEOUT_S:g} s"
    if isinstance(error, OSError):
        return f"no answer from {address}: {error.strerror or error}"
    cause = _of_driver(error)
    if isinstance(cause, ReadOnlyDatabase | TargetServerAttributeNotMatched):
        return f"{address} takes no writes: a hot standby, or default_transaction_read_only is on"
    first_line = logs.masked((str(cause).strip() or type(cause).__name__).splitlines()[0])
    if _POOLER in first_line:
        return f"{first_line}: {address} is a pooler, set TALLY_POOLER=transaction"
    return first_line
