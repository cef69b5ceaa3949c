"""What an error of the database means for the commands in its transaction."""

from __future__ import annotations

import ssl

import pytest
from asyncpg.exceptions import (
    ConnectionDoesNotExistError,
    InterfaceError,
    InternalClientError,
    InvalidCachedStatementError,
    OutdatedSchemaCacheError,
    PostgresError,
)

from common.db.errors import Fault, StaleRead, classify, failure_of, is_lost, map_database_errors
from common.errors import ConflictRetriesExhausted, DatabaseUnavailable, Overloaded


def of_server(sqlstate: str) -> PostgresError:
    """The error that the driver raises for the server's."""
    error: PostgresError = PostgresError.new({"C": sqlstate, "M": "of the server"})
    return error


CASES = [
    ("unique violation", of_server("23505"), Fault.TAKEN),
    ("number out of range", of_server("22003"), Fault.COMMAND),
    ("deadlock", of_server("40P01"), Fault.CONTENTION),
    ("lock timeout", of_server("55P03"), Fault.HELD),
    ("row changed", StaleRead(), Fault.CONTENTION),
    ("connection lost", of_server("08006"), Fault.CONNECTION),
    ("password changed", of_server("28P01"), Fault.CONNECTION),
    ("shutting down", of_server("57P01"), Fault.CONNECTION),
    ("statement timeout", of_server("57014"), Fault.SLOW),
    ("read-only", of_server("25006"), Fault.CONNECTION),
    ("connections not allowed", of_server("55000"), Fault.CONNECTION),
    ("prepared statement lost", of_server("26000"), Fault.CONNECTION),
    ("prepared statement of another client", of_server("42P05"), Fault.CONNECTION),
    ("disk full", of_server("53100"), Fault.CONNECTION),
    ("no answer", InterfaceError("connection is closed"), Fault.CONNECTION),
    ("refused", ConnectionRefusedError(), Fault.CONNECTION),
    ("too slow", TimeoutError(), Fault.CONNECTION),
    ("full pool", Overloaded(pool="reads"), Fault.OVERLOAD),
    ("full bulkhead", Overloaded(bulkhead="jobs"), Fault.OVERLOAD),
    # Readiness compares revisions only, so that nothing else would report it.
    ("no such table", of_server("42P01"), Fault.UNEXPECTED),
    ("defect", ZeroDivisionError(), Fault.UNEXPECTED),
]
OF_NO_USE = {
    "announced end": InternalClientError("cannot switch to state 12; another operation (11) is"),
    "unexpected message": InternalClientError("cannot process message 'E'"),
    "end in a statement": ConnectionDoesNotExistError("connection was closed in the middle"),
    "known to be closed": InterfaceError("cannot perform operation: connection is closed"),
    "statement of a closed one": InterfaceError(
        "cannot call fetch(): the underlying connection is closed"
    ),
    "aborted": ConnectionResetError(),
    "TLS ended": ssl.SSLEOFError(),
    "silent": TimeoutError(),
    "column retyped": InvalidCachedStatementError("cached statement plan is invalid"),
    "type changed": OutdatedSchemaCacheError("unexpected number of attributes"),
    **{
        f"SQLSTATE {state}": of_server(state)
        for state in ("08P01", "25006", "25P03", "26000", "42P05", "57P01", "57P02", "57P05")
    },
}
OF_USE = {
    "used twice at once": InterfaceError("another operation is in progress"),
    **{
        f"SQLSTATE {state}": of_server(state)
        for state in ("22003", "23505", "40001", "42P01", "53100", "55P03", "57014")
    },
}


@pytest.mark.parametrize("error", OF_NO_USE.values(), ids=OF_NO_USE)
def test_a_session_of_no_use_is_the_servers_fault_and_replaced(error: Exception) -> None:
    assert is_lost(error)
    assert classify(error) is Fault.CONNECTION


@pytest.mark.parametrize("error", OF_USE.values(), ids=OF_USE)
def test_a_session_stays_after_an_error_of_its_statement(error: Exception) -> None:
    assert not is_lost(error)


REFUSALS = {
    Fault.CONTENTION: ConflictRetriesExhausted,
    Fault.HELD: ConflictRetriesExhausted,
    Fault.CONNECTION: DatabaseUnavailable,
    Fault.SLOW: DatabaseUnavailable,
    Fault.OVERLOAD: Overloaded,
}


@pytest.mark.parametrize(
    ("error", "fault"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_an_error_is_classified_and_refused_accordingly(error: Exception, fault: Fault) -> None:
    assert classify(error) is fault
    with pytest.raises(REFUSALS.get(fault, type(error))), map_database_errors():
        raise error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError("of one address"), "DATABASE_UNAVAILABLE"),
        (DatabaseUnavailable(), "DATABASE_UNAVAILABLE"),
        (Overloaded(pool="reads"), "OVERLOADED"),
        (of_server("57014"), "statement_timeout"),
        (of_server("55P03"), "lock_timeout"),
        (ZeroDivisionError("seven"), "ZeroDivisionError('seven')"),
    ],
)
def test_a_failure_of_background_work_is_named(error: Exception, text: str) -> None:
    assert failure_of(error) == text
