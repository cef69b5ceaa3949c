"""PostgreSQL: the engines with their time limits, and what went wrong."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
import structlog
from asyncpg.exceptions import TargetServerAttributeNotMatched
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from common import logs
from common.addresses import engine_url
from common.errors import ConflictRetriesExhausted, DatabaseUnavailable
from common.settings import ServiceSettings, source_of

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
_SINGLE: Final = {"isolation_level": "AUTOCOMMIT", "pool_pre_ping": True}
"""For single statements: no transaction around them, and on no connection that is gone."""
CONNECT_TIMEOUT_S: Final = 3.0
CLOSE_S: Final = 2.0
"""How long closing may take. A server that answers needs a moment."""
LOCK_TIMEOUT_MS: Final = 1_000
"""How long a patient transaction waits for one row."""
LANE_LOCK_TIMEOUT_MS: Final = 50
"""How long a lane's batch waits for a lock. It skips rows that are locked; what is left are new
rows that another transaction has inserted and not committed."""
STATEMENT_TIMEOUT_MS: Final = 3_000
IDLE_TIMEOUT_MS: Final = 6_000
POOL_TIMEOUT_S: Final = 3.0
READY_TIMEOUT_S: Final = 1.5
"""Less than the health probe's own limit (common.health): here it is known what did not answer."""

_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Database:
    """A service's database, with sessions for purposes that must not wait for each other."""

    lanes: AsyncEngine
    """Transactions of lanes, which hold up everyone behind them: they wait for no lock."""
    patient: AsyncEngine
    """Transactions that wait for a row, and sweeps: apart from the lanes."""
    reads: AsyncEngine
    """Single statements, no transaction around them."""
    probe: AsyncEngine
    """One session, to look whether the database is fit: a crowd of readers, who have to wait for
    each other, does not make it unfit."""
    setting: str = "the database"
    """The variable or file that the address came from, for the operator."""
    checked: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    """Set when the server has been found fit once, and its durability looked at."""

    def begin(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction outside any lane, for sweeps and clean-ups."""
        return self.patient.begin()

    async def close(self) -> None:
        """Close every connection, within CLOSE_S; those of a silent server are dropped."""
        engines = (self.lanes, self.patient, self.reads, self.probe)
        closing = {asyncio.create_task(engine.dispose()) for engine in engines}
        # Without a limit the driver waits for each of them, one after the other.
        _, late = await asyncio.wait(closing, timeout=CLOSE_S / 2)
        for task in late:
            task.cancel()
        if late:
            _log.warning("database connections dropped", setting=self.setting)
            await asyncio.wait(late, timeout=CLOSE_S / 2)


def open_pools(
    url: str, *, application_name: str, pool_size: int, setting: str = "the database"
) -> Database:
    """Engines whose sessions wait for nothing without limit, with ``pool_size`` connections in all.

    One for the probe, and of the others a third each for lanes, for rows that others hold, and for
    reads, at least one: a crowd of readers cannot keep a write from its connection, nor a held row
    everyone else's batch.
    """
    shared = pool_size - 1
    third = max(shared // 3, 1)

    def engine(purpose: str, size: int, lock_timeout_ms: int, **options: Any) -> AsyncEngine:
        return create_async_engine(
            engine_url(url),
            pool_size=size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            pool_use_lifo=True,
            connect_args={
                "timeout": CONNECT_TIMEOUT_S,
                # In a failover the name may still lead to the old primary, a standby by then: what
                # is read there is old, and such a session would be kept when the name has moved.
                "target_session_attrs": "read-write",
                # The client gives up a little after the server should have.
                "command_timeout": STATEMENT_TIMEOUT_MS / 1000 + 1,
                "server_settings": {
                    "application_name": f"{application_name} {purpose}",
                    "lock_timeout": str(lock_timeout_ms),
                    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                    # A replica that is frozen inside a transaction loses it, and its row locks.
                    "idle_in_transaction_session_timeout": str(IDLE_TIMEOUT_MS),
                    "timezone": "UTC",
                    **_PLANS,
                },
            },
            **options,
        )

    return Database(
        lanes=engine("lanes", third, LANE_LOCK_TIMEOUT_MS),
        patient=engine("patient", third, LOCK_TIMEOUT_MS),
        # A lane repeats its batch on a connection that went stale; a read has nobody to.
        reads=engine("reads", max(shared - 2 * third, 1), LOCK_TIMEOUT_MS, **_SINGLE),
        probe=engine("probe", 1, LOCK_TIMEOUT_MS, **_SINGLE),
        setting=setting,
    )


@asynccontextmanager
async def open_database(settings: ServiceSettings) -> AsyncIterator[Database]:
    """The service's database, from its settings; closed at the end of the block."""
    database = open_pools(
        settings.database_url.get_secret_value(),
        application_name=f"tally {settings.service} {settings.replica}"[:48],
        pool_size=settings.pool_size,
        setting=source_of(type(settings), "database_url"),
    )
    try:
        yield database
    finally:
        await database.close()


def reads(database: Database) -> AsyncEngine:
    """For single reads: no BEGIN and COMMIT around one SELECT."""
    return database.reads


@asynccontextmanager
async def reading(database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection for a few single reads. Raises DatabaseUnavailable if the server is away."""
    with told_as_refusals():
        async with database.reads.connect() as connection:
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


UNIQUE_VIOLATION: Final = "23505"
UNDEFINED_TABLE: Final = "42P01"
INSUFFICIENT_PRIVILEGE: Final = "42501"
LOCK_NOT_AVAILABLE: Final = "55P03"
_CONTENTION: Final = {"40001", "40P01", LOCK_NOT_AVAILABLE}
_UNREACHABLE: Final = {
    "25006",  # read-only: a failover is under way and this is the old primary
    "57014",  # statement_timeout
    "25P03",  # idle_in_transaction_session_timeout
    "57P01",
    "57P02",
    "57P03",
}


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
    if state[:2] in {"08", "28", "3D", "53", "58"} or state in _UNREACHABLE:
        # 28: not let in, with a password that was changed; 3D: no such database; 53: out of
        # connections, memory or disk; 58: I/O. The server is not fit, not the command.
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


class TakesNoWrites(Exception):  # noqa: N818 - a state, not a fault
    """A session of a hot standby, or read-only by a setting of the server, database or role."""


def reason_of(error: BaseException, url: sa.URL) -> str:
    """Why the database at ``url`` cannot be used, in one line for the operator."""
    address = f"{url.host}:{url.port or 5432}"
    if isinstance(error, TimeoutError):
        return f"no answer from {address} within {READY_TIMEOUT_S:g} s"
    if isinstance(error, OSError):
        return f"no answer from {address}: {error.strerror or error}"
    cause = getattr(getattr(error, "orig", None), "__cause__", None) or error
    if isinstance(cause, TakesNoWrites | TargetServerAttributeNotMatched):
        return f"{address} takes no writes: a hot standby, or default_transaction_read_only is on"
    first_line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return logs.masked(first_line)


def tells_unready(error: BaseException) -> bool:
    """Whether the replica's readiness tells of this already: there is no database to be had."""
    return isinstance(error, DatabaseUnavailable) or classify(error) is Fault.CONNECTION
