"""What each role may do in its service's database, tried in PostgreSQL: no more than is needed.

A stack, a demo and all other tests run as the runtime roles, so each right that a service needs is
used by them; ``test_the_services_use_their_runtime_roles`` of the contract's tests sees to that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import asyncpg
import pytest

from deploy.local.postgres_roles import ROLE_KINDS, ServiceUrls, roles_of
from tests.support.databases import SERVICES, Databases, StackDatabases, name_of

Rights: TypeAlias = dict[str, str]
"""The rights by table. In parentheses: the only columns that may be updated."""

READ: Final = "SELECT"
ADD: Final = "SELECT INSERT"
CHANGE: Final = "SELECT INSERT UPDATE"
ALL: Final = "SELECT INSERT UPDATE DELETE"
EVERYWHERE: Final = {"answers": ALL, "alembic_version": READ}

RUNTIME: Final[dict[str, Rights]] = {
    "balance": {
        "accounts": CHANGE,
        "ledger_entries": ADD,
    },
    "coupon": {
        "campaigns": "SELECT INSERT UPDATE(issued issued_by_ticket queue_fence)",
        "campaign_shares": "SELECT INSERT UPDATE(issued)",
        "coupons": "SELECT INSERT UPDATE(order_id redeem_request_id redeem_time)",
        "redemptions": "SELECT INSERT UPDATE(restore_request_id restore_time)",
    },
    "order": {
        "products": CHANGE,
        "seats": "SELECT INSERT UPDATE(order_id state version)",
        "stock_entries": ADD,
        "orders": CHANGE,
        "order_items": ADD,
        "order_seats": "SELECT INSERT UPDATE(live)",
        "carts": CHANGE,
        "cart_items": ALL,
        "sagas": CHANGE,
        "heartbeat": "SELECT UPDATE",
    },
    "payment": {
        # A claim whose call never left is deleted: its key is free again.
        "payments": ALL,
        "heartbeat": "SELECT UPDATE",
    },
}
"""What a replica may do. Ledgers (``ledger_entries``, ``stock_entries``) only grow."""

COLUMNS: Final = (
    "SELECT table_name, array_agg(column_name::text ORDER BY column_name)"
    " FROM information_schema.columns WHERE table_schema = 'public' GROUP BY table_name"
)
OF_TABLES: Final = (
    "TRUNCATE {table}",
    "DROP TABLE {table} CASCADE",
    "ALTER TABLE {table} ADD COLUMN made int",
    "ALTER TABLE {table} DISABLE TRIGGER USER",
    "ALTER TABLE {table} OWNER TO {role}",
    "CREATE INDEX ON {table} ((1))",
    "CREATE RULE made AS ON INSERT TO {table} DO INSTEAD NOTHING",
    "CREATE POLICY made ON {table}",
)
"""What nobody but the owner may do to a table."""
OF_DATABASES: Final = (
    "CREATE TABLE made (id int)",
    "CREATE TEMPORARY TABLE made (id int)",
    "CREATE VIEW made AS SELECT 1",
    "CREATE FUNCTION made() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA made",
    "DROP SCHEMA public CASCADE",
    "ALTER DATABASE {database} SET row_security = off",
)
"""What nobody but the owner may do in a database."""
OF_SERVERS: Final = (
    "CREATE ROLE made",
    "ALTER ROLE {role} CREATEDB",
    "ALTER ROLE {owner} PASSWORD 'made'",
    "SET ROLE {owner}",
    "SET SESSION AUTHORIZATION {owner}",
    "SET session_replication_role = replica",
    "CHECKPOINT",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "COPY (SELECT 1) TO '/tmp/made'",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT passwd FROM pg_shadow",
)
"""What leads out of a role or a database."""
OF_SERVERS_ALONE: Final = ("CREATE DATABASE made", "ALTER SYSTEM SET fsync = off")
"""The same, for which PostgreSQL takes no transaction."""

of_each_service = pytest.mark.parametrize("service", SERVICES)
of_each_login = pytest.mark.parametrize("kind", ["runtime", "audit"])


@pytest.fixture(scope="module")
def databases_of_all(databases: Databases) -> Iterator[StackDatabases]:
    """One database of each service for the module: its tests write nothing."""
    with databases.clone_all() as cloned:
        yield cloned


@pytest.fixture
def urls(databases_of_all: StackDatabases, service: str) -> ServiceUrls:
    return databases_of_all.urls[service]


class Session:
    """A session of one role."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection

    async def may(self, statement: str) -> bool:
        """Whether PostgreSQL lets the role do this. Nothing of it remains.

        Raises the error if it is refused for anything but a missing right.
        """
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            await self._connection.execute(statement)
        except asyncpg.InsufficientPrivilegeError:
            return False
        finally:
            await transaction.rollback()
        return True

    async def may_alone(self, statement: str) -> bool:
        """The same for a statement outside of any transaction: what is permitted is done."""
        try:
            await self._connection.execute(statement)
        except asyncpg.InsufficientPrivilegeError:
            return False
        return True

    async def tables(self) -> dict[str, list[str]]:
        """The columns by table."""
        return dict(await self._connection.fetch(COLUMNS))

    async def rights(self, table: str, columns: list[str]) -> str:
        """What the role may do with the table, in the words of ``Rights``."""
        changing = [
            column
            for column in columns
            if await self.may(f'UPDATE "{table}" SET "{column}" = DEFAULT WHERE false')
        ]
        update = "UPDATE" if changing == columns else f"UPDATE({' '.join(changing)})"
        granted = {
            "SELECT": await self.may(f'SELECT FROM "{table}" LIMIT 0'),
            "INSERT": await self.may(f'INSERT INTO "{table}" SELECT * FROM "{table}" LIMIT 0'),
            update: bool(changing),
            "DELETE": await self.may(f'DELETE FROM "{table}" WHERE false'),
        }
        return " ".join(right for right, has in granted.items() if has)


@asynccontextmanager
async def session(urls: ServiceUrls, kind: str) -> AsyncIterator[Session]:
    """A session of the service's role of this kind."""
    connection = await asyncpg.connect(getattr(urls, kind))
    try:
        yield Session(connection)
    finally:
        await connection.close()


async def rights_of(urls: ServiceUrls, kind: str) -> Rights:
    # The owner sees every column, whatever the others may.
    async with session(urls, "owner") as owner:
        tables = await owner.tables()
    async with session(urls, kind) as login:
        return {table: await login.rights(table, columns) for table, columns in tables.items()}


@of_each_service
async def test_a_replica_has_the_rights_that_are_listed_and_no_other(
    urls: ServiceUrls, service: str
) -> None:
    assert await rights_of(urls, "runtime") == RUNTIME[service] | EVERYWHERE


@of_each_service
async def test_the_audit_reads_and_does_nothing_else(urls: ServiceUrls, service: str) -> None:
    assert await rights_of(urls, "audit") == dict.fromkeys(RUNTIME[service] | EVERYWHERE, READ)


@of_each_service
@of_each_login
async def test_no_login_changes_the_schema_or_leaves_its_database(
    urls: ServiceUrls, service: str, kind: str
) -> None:
    owner, *_ = roles_of(service)
    role = f"tally_{service}_{kind}"
    named = {"role": role, "owner": owner, "database": name_of(urls)}
    statements = [text.format(**named) for text in (*OF_DATABASES, *OF_SERVERS)]
    statements += [
        text.format(table=table, **named)
        for table in RUNTIME[service] | EVERYWHERE
        for text in OF_TABLES
    ]
    async with session(urls, kind) as login:
        done = [statement for statement in statements if await login.may(statement)]
        done += [text for text in OF_SERVERS_ALONE if await login.may_alone(text)]
    assert done == []


@of_each_service
async def test_control_the_owner_may_change_the_schema(urls: ServiceUrls, service: str) -> None:
    """The statements are right: whoever has the rights is not refused."""
    named = {"table": "answers", "role": roles_of(service)[0]}
    async with session(urls, "owner") as owner:
        refused = [text for text in OF_TABLES if not await owner.may(text.format(**named))]
    assert refused == []


@of_each_service
@pytest.mark.parametrize("kind", ROLE_KINDS)
async def test_no_role_reaches_the_database_of_another_service(
    databases_of_all: StackDatabases, service: str, kind: str
) -> None:
    own = databases_of_all.urls[service]
    others = [*(each for name, each in databases_of_all.urls.items() if name != service)]
    for other in map(name_of, others):
        elsewhere = databases_of_all.server.urls(service, other)
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
            await asyncpg.connect(getattr(elsewhere, kind))
    async with session(own, kind) as login:
        assert await login.may("SELECT 1")
