"""PostgreSQL: the engine with its time limits, what went wrong, and whether it is fit to serve."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from common.errors import ConflictRetriesExhausted, DatabaseUnavailable
from common.settings import ServiceSettings

_PLANS: Final = {
    # Every statement looks rows up by key, from arrays of unknown length. Planned once, for few
    # rows, over indexes: a plan made while a table was empty must still be right when it is full,
    # and the planner, seeing a small table, would read all of it for every batch.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_mergejoin": "off",
    "random_page_cost": "1.1",
    "jit": "off",
}
CONNECT_TIMEOUT_S: Final = 3.0
POOL_TIMEOUT_S: Final = 3.0


def open_engine(
    url: str,
    *,
    application_name: str = "tally",
    pool_size: int = 5,
    lock_timeout_ms: int = 1_000,
    statement_timeout_ms: int = 5_000,
) -> AsyncEngine:
    """An engine whose sessions can wait for nothing without limit.

    ``lock_timeout_ms`` bounds the wait for one row, ``statement_timeout_ms`` one statement; a
    transaction left idle (its process paused) is ended by the server after twice that, so that a
    frozen replica frees its rows. The client gives up a little after the server would have.

    There is no ping before use: a lane repeats its batch on a lost connection anyway, and a ping
    would cost a round trip on every batch.
    """
    return create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg"),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        pool_use_lifo=True,
        connect_args={
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": statement_timeout_ms / 1000 + 1,
            "server_settings": {
                "application_name": application_name,
                "lock_timeout": str(lock_timeout_ms),
                "statement_timeout": str(statement_timeout_ms),
                "idle_in_transaction_session_timeout": str(2 * statement_timeout_ms),
                "timezone": "UTC",
                **_PLANS,
            },
        },
    )


@asynccontextmanager
async def open_database(settings: ServiceSettings) -> AsyncIterator[AsyncEngine]:
    """The service's engine, from its settings; closed at the end of the block."""
    engine = open_engine(
        settings.database_url.get_secret_value(),
        application_name=f"tally {settings.service} {settings.replica}",
        pool_size=settings.pool_size,
    )
    try:
        yield engine
    finally:
        await engine.dispose()


def reads(engine: AsyncEngine) -> AsyncEngine:
    """The same pool for single reads: no BEGIN and COMMIT around one SELECT."""
    return engine.execution_options(isolation_level="AUTOCOMMIT")


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection for a few single reads. Raises DatabaseUnavailable if the server is away."""
    with told_as_refusals():
        async with reads(engine).connect() as connection:
            yield connection


class Fault(enum.Enum):
    """What a failed batch means for the commands in it."""

    COMMAND = "command"
    """One command broke a constraint or a type (SQLSTATE 22, 23): find it."""
    CONTENTION = "contention"
    """Deadlock, serialization, lock wait over its limit: the same batch again."""
    CONNECTION = "connection"
    """The server went away, or did not answer: again; whether it had committed, replay tells."""
    UNEXPECTED = "unexpected"
    """A defect of ours."""


class Overtaken(Exception):  # noqa: N818 - somebody else was faster, which is no fault
    """A row was not as it had been read when it was written: nothing of the batch may be kept.

    Where the rows were locked this cannot happen, and the comparison is there in case they were
    not. The batch goes again, as after a deadlock.
    """


_CONTENTION: Final = {"40001", "40P01", "55P03"}
_UNREACHABLE: Final = {
    "25006",  # read-only: a failover is under way and this is the old primary
    "53300",  # too many connections
    "57014",  # statement_timeout
    "25P03",  # idle_in_transaction_session_timeout
    "57P01",
    "57P02",
    "57P03",
}
UNIQUE_VIOLATION: Final = "23505"


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE that PostgreSQL gave, or ''."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")


def constraint(error: BaseException) -> str:
    """The name of the constraint that was violated, or ''."""
    cause = getattr(getattr(error, "orig", None), "__cause__", None)
    return str(getattr(cause, "constraint_name", None) or "")


def classify(error: BaseException) -> Fault:
    """Sort an exception from a transaction into what the lane does about it."""
    state = sqlstate(error)
    if state[:2] in {"22", "23"}:
        return Fault.COMMAND
    if state in _CONTENTION or isinstance(error, Overtaken):
        return Fault.CONTENTION
    if state[:2] == "08" or state in _UNREACHABLE:
        return Fault.CONNECTION
    if isinstance(error, exc.DBAPIError) and (error.connection_invalidated or not state):
        # Without a SQLSTATE the server did not speak: asyncpg's InterfaceError.
        return Fault.CONNECTION
    if isinstance(error, OSError | TimeoutError | exc.TimeoutError):
        return Fault.CONNECTION
    if type(error).__module__.startswith("asyncpg"):
        # Raised while connecting, where SQLAlchemy does not wrap it.
        return Fault.CONNECTION
    return Fault.UNEXPECTED


@contextmanager
def told_as_refusals() -> Iterator[None]:
    """For SQL outside a lane: what a lane would tell its callers of a lost or contended database.

    Raises DatabaseUnavailable or ConflictRetriesExhausted; anything else passes as it is.
    """
    try:
        yield
    except Exception as error:
        fault = classify(error)
        if fault is Fault.CONNECTION:
            raise DatabaseUnavailable from error
        if fault is Fault.CONTENTION:
            raise ConflictRetriesExhausted from error
        raise


class NotReady(Exception):  # noqa: N818 - a state, not a fault
    """The service cannot serve now; the message says why and what to do."""


async def check_ready(engine: AsyncEngine, *, schema: str) -> None:
    """Raise NotReady unless the database answers and its schema is at least ``schema``.

    Revisions are numbers of four digits. A newer schema is fine: releases expand first and
    contract only when no replica of the older release is left.
    """
    try:
        async with reads(engine).connect() as connection:
            found = (
                await connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            ) or ""
    except Exception as error:
        if sqlstate(error) == "42P01":
            raise NotReady("the database has no schema yet: run the migrate command") from None
        raise NotReady(f"the database does not answer: {type(error).__name__}") from error
    if found < schema:
        raise NotReady(f"the schema is at {found}, this release needs {schema}: run migrate")


async def durability_warnings(connection: AsyncConnection) -> list[str]:
    """Settings of the server under which a committed answer could be lost in a crash."""
    rows = await connection.execute(
        sa.text("SELECT name, setting FROM pg_settings WHERE name = ANY(:names)"),
        {"names": ["fsync", "synchronous_commit", "full_page_writes"]},
    )
    return [
        f"{name} is off: a crash may lose committed answers" for name, on in rows if on == "off"
    ]
