"""What a database's server has to be set to, and how the settings of sessions reach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import sqlalchemy as sa

from common.db.statements import Connection
from common.setting_types import Pooler

_DURABILITY: Final = ("fsync", "synchronous_commit", "full_page_writes")
_ENCODING: Final = "server_encoding"
_SETTINGS: Final = sa.text("SELECT name, setting, source FROM pg_settings WHERE name = ANY(:names)")
_COLLATION: Final = sa.text(
    "SELECT datname AS database, coalesce(datlocale, datcollate) AS locale,"
    " datlocprovider::text = 'b' AS is_builtin, to_regclass('alembic_version') IS NULL AS is_empty,"
    " datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual"
    " FROM pg_database WHERE datname = current_database()"
)
_OWN_NAMES: Final = sa.text(
    # This statement itself is prepared under such a name.
    r"SELECT EXISTS (SELECT FROM pg_prepared_statements WHERE name LIKE '\_\_asyncpg\_%')"
)


class UnsuitableServer(Exception):  # noqa: N818 - a state, not a fault
    """With a setting of the server, the books would be wrong. Names the setting, and what to do."""


class TransactionSettings:
    """The settings that a transaction begins with, where sessions do not keep those of their start.

    By pool: one statement that gives a transaction all of them.
    """

    def __init__(self, pooler: Pooler, settings: Mapping[str, Mapping[str, str]]) -> None:
        """``settings``: those of each pool, by its name."""
        self.enabled = pooler == "transaction"
        self._statements = {
            pool: sa.select(
                *(sa.func.set_config(name, value, sa.true()) for name, value in values.items())
            )
            for pool, values in settings.items()
        }

    def of(self, pool: str) -> Sequence[sa.Executable]:
        """The statements with which a transaction of this pool begins."""
        return (self._statements[pool],) if self.enabled else ()


async def check_server(connection: Connection) -> list[str]:
    """Warnings about settings with which a crash could lose committed transactions.

    Raises UnsuitableServer for a setting with which the books would be wrong.
    """
    found = await _read(connection, [_ENCODING, *_DURABILITY])
    encoding, _ = found[_ENCODING]
    if encoding != "UTF8":
        raise UnsuitableServer(
            f"{_ENCODING} is {encoding}, which cannot store every text: create the database again "
            "with ENCODING 'UTF8' TEMPLATE template0"
        )
    await _check_collation(connection)
    return [
        f"{name} is off: a crash may lose committed answers"
        for name in sorted(_DURABILITY)
        if found[name][0] == "off"
    ]


async def _check_collation(connection: Connection) -> None:
    """Every unique key of text is in an index, sorted by the collation of its time.

    In another order, a search misses rows that exist, and a key that is used counts as free.
    """
    collation = (await connection.execute(_COLLATION)).one()
    if collation.recorded == collation.actual or None in {collation.recorded, collation.actual}:
        return  # without a version it does not change: C, POSIX
    raise UnsuitableServer(
        f"the collation {collation.locale} had version {collation.recorded} when the database was "
        f"made and has {collation.actual} now, so that unique keys may exist twice: as its owner "
        f'run REINDEX DATABASE "{collation.database}", then ALTER DATABASE '
        f'"{collation.database}" REFRESH COLLATION VERSION'
    )


async def require_writable(connection: Connection) -> None:
    """Raise UnsuitableServer if transactions take no writes."""
    if await connection.scalar(sa.text("SHOW transaction_read_only")) == "on":
        raise UnsuitableServer(
            "default_transaction_read_only is on, or the server is a hot standby: give the "
            "primary's address, or set it off for the database and the role"
        )


async def require_direct(connection: Connection) -> None:
    """Raise UnsuitableServer if a pooler is between this session and the server.

    The lock of migrations belongs to a session. Behind a pooler the next transaction may have
    another one, and a lock that stays behind blocks every later migration.
    """
    if await _is_pooled(connection):
        raise UnsuitableServer(
            "the address leads through a pooler, whose sessions change with each transaction: "
            "give the address of the server itself"
        )


async def require_prepared_statements(connection: Connection) -> None:
    """Raise UnsuitableServer if a pooler for transactions does not keep prepared statements.

    One that does gives them names of its own. Without that, each transaction may find a session
    that does not know its statements, or has others under their names.
    """
    if await connection.scalar(_OWN_NAMES) and await _is_pooled(connection):
        raise UnsuitableServer(
            "the pooler does not keep prepared statements: use PgBouncer 1.21 or newer with "
            "max_prepared_statements above 0, or a pooler in session mode and TALLY_POOLER=none"
        )


async def _is_pooled(connection: Connection) -> bool:
    """Whether a pooler is between: it sends clients a process id of its own."""
    server_pid = await connection.scalar(sa.text("SELECT pg_backend_pid()"))
    return bool(connection.session.get_server_pid() != server_pid)


async def collation_warning(connection: Connection) -> str:
    """Why a database that is still empty should be created again, or ''."""
    collation = (await connection.execute(_COLLATION)).one()
    if collation.is_builtin or collation.recorded is None or not collation.is_empty:
        return ""
    return (
        f"the collation {collation.locale} changes with the operating system, and then every "
        "replica refuses to serve until the indexes are built again: create the database with "
        "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C' TEMPLATE template0"
    )


async def lost_settings(connection: Connection, asked: Mapping[str, str]) -> list[str]:
    """The names of the settings that a session asked for at its start and does not have.

    A pooler drops them. A setting of database or role that happens to have the same value counts as
    lost too: another session may have asked for another value.
    """
    found = await _read(connection, [*asked])
    return [
        name
        for name, value in asked.items()
        if found[name] not in ((value, "client"), (value, "session"))
    ]


async def _read(connection: Connection, names: list[str]) -> dict[str, tuple[str, str]]:
    """Each setting's value, in its own unit, and where it is from."""
    rows = await connection.execute(_SETTINGS, {"names": names})
    return {name: (setting, source) for name, setting, source in rows}
