"""Sessions keep the plans of their first statements, which may be made while tables are empty."""

from __future__ import annotations

import json
import math
import pkgutil
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, Final

import asyncpg
import pytest
import sqlalchemy as sa

from common.db import pool
from common.db.database import open_pools
from common.db.figures import StoredFigures
from common.db.idempotency import IdempotencyStore
from common.db.row_locks import RowLocks
from common.db.statements import Connection, compiled
from payment_service.store.reads import _newest_with
from tests.integration.services.operations import SERVICES
from tests.support.databases import Databases

STATEMENTS: Final = (sa.Select, sa.Insert, sa.Update, sa.Delete)
FILTERS: Final = (
    {"user_id"},
    {"payment_key"},
    {"user_id", "order_id"},
    {"user_id", "payment_key"},
    {"order_id", "payment_key"},
)
OF_WORK: Final = {
    "sagas_active": {
        "order_service.store.saga_waiting._RETRY",
        "order_service.store.saga_waiting._WAITING",
        "order_service.store.figures.ACTIVE_SAGAS._statement",
    },
    "payments_due": {"payment_service.store.lease._ACQUIRE"},
    "payments_refund_refused": {"payment_service.store.figures.OPEN_PAYMENTS._statement"},
    "orders_open_of_user": {"order_service.store.order._DUE"},
}
"""Indexes of what is still open, and the statements that may read them whole."""
EXPLAIN: Final = "EXPLAIN (FORMAT JSON)"
SCANS: Final = {"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan"}
JOINS_OF_WHOLES: Final = {"Hash Join", "Merge Join"}


def statements(service: str) -> Iterator[tuple[str, sa.Executable]]:
    """Every statement of the service's stores, by the name of its module's constant."""
    package = f"{service}_service.store"
    for found in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        for name, value in vars(import_module(found.name)).items():
            if isinstance(value, RowLocks):
                yield from attributes(f"{found.name}.{name}", value)
                records = idempotency_of(service).asked([]).column
                yield f"{found.name}.{name}._lock_and_read", value._lock_and_read(records)
            elif isinstance(value, StoredFigures):
                yield from attributes(f"{found.name}.{name}", value)
            elif name.isupper():
                for key, statement in (value if isinstance(value, dict) else {"": value}).items():
                    if isinstance(statement, STATEMENTS):
                        yield f"{found.name}.{name}{key}", statement
    yield from attributes("answers", idempotency_of(service))
    if service == "payment":
        for columns in FILTERS:
            yield f"newest of {sorted(columns)}", _newest_with(frozenset(columns))


def idempotency_of(service: str) -> IdempotencyStore:
    return IdempotencyStore(import_module(f"{service}_service.tables").answers)


def attributes(name: str, owner: object) -> Iterator[tuple[str, sa.Executable]]:
    for attribute, value in vars(owner).items():
        if isinstance(value, STATEMENTS):
            yield f"{name}.{attribute}", value


@pytest.fixture(params=[None, 1, 10])
async def connection(
    databases: Databases, service: str, request: pytest.FixtureRequest
) -> AsyncIterator[Connection]:
    """A session of the service, on tables with so many rows, if their keys allow it.

    None: without, and the planner does not know. It takes such a table for ten pages.
    """
    with databases.clone(service) as urls:
        if request.param is not None:
            await add_rows(urls.owner, request.param)
        database = open_pools(urls.runtime, application_name="test", pool_size=4)
        try:
            async with database.reads.connect() as opened:
                yield opened
        finally:
            await database.close()


_VALUES: Final = {
    "text": "'PENDING'",
    "uuid": "gen_random_uuid()",
    "boolean": "true",
    "jsonb": "'{}'",
    "bytea": "''",
    "ARRAY": "'{}'",
    "timestamp with time zone": "now()",
}
"""A value of each type; of numbers 1."""
_COLUMNS: Final = (
    "SELECT table_name, array_agg(column_name::text), array_agg(data_type::text)"
    " FROM information_schema.columns WHERE table_schema = 'public' AND column_default IS NULL"
    " GROUP BY table_name"
)
_CONSTRAINTS: Final = (
    "SELECT conrelid::regclass::text, quote_ident(conname) FROM pg_constraint"
    " WHERE contype IN ('c', 'f') AND connamespace = 'public'::regnamespace"
)


async def add_rows(url: str, count: int = 1, *, analyze: bool = True) -> None:
    """Add rows to every table whose key allows it; ``analyze``: and let the planner know."""
    session = await asyncpg.connect(url)
    try:
        for table, name in await session.fetch(_CONSTRAINTS):
            await session.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        for table, names, types in await session.fetch(_COLUMNS):
            values = ", ".join(_VALUES.get(of_type, "1") for of_type in types)
            columns = ", ".join(f'"{name}"' for name in names)
            await session.execute(
                f"INSERT INTO {table} ({columns}) SELECT {values} FROM generate_series(1, {count})"
                " ON CONFLICT DO NOTHING"
            )
        if analyze:
            await session.execute("VACUUM (ANALYZE)")
    finally:
        await session.close()


async def plan_of(
    connection: Connection, statement: sa.Executable, change: Callable[[str], str] = str
) -> dict[str, Any]:
    one = compiled(statement)
    nothing = ", ".join(["NULL"] * len(one.arguments))
    await connection.session.execute(f"PREPARE one AS {change(one.sql)}")
    execute = f"EXECUTE one{f'({nothing})' if nothing else ''}"
    ((plan,),) = await connection.session.fetch(f"{EXPLAIN} {execute}")
    await connection.session.execute("DEALLOCATE one")
    (explained,) = json.loads(plan)
    return dict(explained["Plan"])


def whole_reads(
    name: str, node: dict[str, Any], leading: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The nodes of a plan that read a whole table or index, or compare with all of one.

    ``leading``: the first column of each index, which has to be looked up.
    """
    kind = node["Node Type"]
    index = node.get("Index Name", "")
    condition = node.get("Index Cond", "")
    looked_up = (leading[index] if leading and index else "") in condition and condition
    if kind in JOINS_OF_WHOLES or (
        kind in SCANS and not looked_up and name not in OF_WORK.get(index, ())
    ):
        yield f"{kind} {node.get('Relation Name', '')} {index}"
    for part in node.get("Plans", ()):
        yield from whole_reads(name, part, leading)


async def leading_columns(connection: Connection) -> dict[str, str]:
    """The first column of each index."""
    rows = await connection.session.fetch(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid, 1, true) FROM pg_index"
        " JOIN pg_class ON pg_class.oid = indrelid WHERE relnamespace = 'public'::regnamespace"
    )
    return dict(rows)


@pytest.mark.parametrize("service", SERVICES)
async def test_no_statement_is_planned_to_read_a_whole_table(
    connection: Connection, service: str, request: pytest.FixtureRequest
) -> None:
    # With a few rows, an index that has the column elsewhere is as good: see the last test.
    known = request.node.callspec.params["connection"] is not None
    leading = None if known else await leading_columns(connection)
    found = {
        name: list(whole_reads(name, await plan_of(connection, statement), leading))
        for name, statement in statements(service)
    }
    assert len(found) > 10
    assert {name: reads for name, reads in found.items() if reads} == {}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("connection", [1], indirect=True)
async def test_control_joined_by_equality_whole_tables_are_read(
    connection: Connection, service: str
) -> None:
    found = {
        name: list(whole_reads(name, await plan_of(connection, statement, _by_equality)))
        for name, statement in statements(service)
    }
    assert len([reads for reads in found.values() if reads]) >= 3


def _by_equality(sql: str) -> str:
    """The statement without ``looked_up``."""
    return re.sub(r"= ANY \(ARRAY\[([^]]+)\]\)", r"= \1", sql)


async def test_a_plan_made_for_few_rows_is_not_kept(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a row, any index that has the column is as good as any other."""
    with databases.clone("order") as urls:
        await add_rows(urls.owner)
        database = open_pools(urls.runtime, application_name="test", pool_size=4)

        async def index() -> str:
            async with database.reads.connect() as connection:
                ((plan,),) = await connection.session.fetch(f"{EXPLAIN} EXECUTE one (NULL)")
            return str(json.loads(plan)[0]["Plan"]["Index Name"])

        monkeypatch.setattr(pool, "PLANS_S", math.inf)
        try:
            async with database.reads.connect() as connection:
                await connection.session.execute(
                    "PREPARE one AS SELECT name FROM products WHERE product_id = $1"
                )
            assert await index() == "products_newest"
            await add_rows(urls.owner, 10_000, analyze=False)
            assert await index() == "products_newest"
            monkeypatch.setattr(pool, "PLANS_S", 0.0)
            assert await index() == "products_pkey"
        finally:
            await database.close()
