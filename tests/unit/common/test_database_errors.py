"""What an error of the database means for the commands in its transaction."""

from __future__ import annotations

import pytest
from asyncpg.exceptions import InterfaceError, PostgresError

from common.db.errors import Fault, StaleRead, classify, failure_of, map_database_errors
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
