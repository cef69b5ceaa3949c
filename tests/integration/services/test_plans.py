"""Sessions keep the plans of their first statements, which may be made while tables are empty."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from typing import Any, Final

import pytest
import sqlalchemy as sa

from common.db.database import open_pools
from common.db.idempotency import IdempotencyStore
from common.db.row_locks import RowLocks
from common.db.statements import Connection, compiled
from tests.integration.services.operations import SERVICES
from tests.support.databases import Databases

DUE: Final = {
    "sagas_active": "order_service.store.saga_waiting._RETRY",
    "payments_due": "payment_service.store.lease._ACQUIRE",
}
"""Statements that read the index of what is due from its beginning, until they have enough."""
SCANS: Final = {"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan"}
JOINS_OF_WHOLES: Final = {"Hash Join", "Merge Join"}


def statements(service: str) -> Iterator[tuple[str, sa.Executable]]:
    """Every statement of the service's stores, by the name of its module's constant."""
    package = f"{service}_service.store"
    for found in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        for name, value in vars(import_module(found.name)).items():
            if isinstance(value, RowLocks):
                yield from attributes(f"{found.name}.{name}", value)
            elif name.isupper() and isinstance(
                value, sa.Select | sa.Insert | sa.Update | sa.Delete
            ):
                yield f"{found.name}.{name}", value
    tables = import_module(f"{service}_service.tables")
    yield from attributes("answers", IdempotencyStore(tables.answers))


def attributes(name: str, owner: object) -> Iterator[tuple[str, sa.Executable]]:
    for attribute, value in vars(owner).items():
        if isinstance(value, sa.Select | sa.Insert | sa.Update | sa.Delete):
            yield f"{name}.{attribute}", value


@pytest.fixture
async def connection(databases: Databases, service: str) -> AsyncIterator[Connection]:
    """A session of the service, on a database without rows."""
    with databases.clone(service) as urls:
        database = open_pools(urls.runtime, application_name="test", pool_size=4)
        try:
            async with database.reads.connect() as opened:
                yield opened
        finally:
            await database.close()


async def plan_of(connection: Connection, statement: sa.Executable) -> dict[str, Any]:
    one = compiled(statement)
    nothing = ", ".join(["NULL"] * len(one.arguments))
    await connection.session.execute(f"PREPARE one AS {one.sql}")
    explain = f"EXPLAIN (FORMAT JSON) EXECUTE one{f'({nothing})' if nothing else ''}"
    ((plan,),) = await connection.session.fetch(explain)
    await connection.session.execute("DEALLOCATE one")
    (explained,) = json.loads(plan)
    return dict(explained["Plan"])


def whole_reads(name: str, node: dict[str, Any]) -> Iterator[str]:
    """The nodes of a plan that read a whole table or index, or compare with all of one."""
    kind = node["Node Type"]
    index = node.get("Index Name", "")
    if kind in JOINS_OF_WHOLES or (
        kind in SCANS and "Index Cond" not in node and DUE.get(index) != name
    ):
        yield f"{kind} {node.get('Relation Name', '')} {index}"
    for part in node.get("Plans", ()):
        yield from whole_reads(name, part)


@pytest.mark.parametrize("service", SERVICES)
async def test_no_statement_is_planned_to_read_a_whole_table(
    connection: Connection, service: str
) -> None:
    found = {
        name: list(whole_reads(name, await plan_of(connection, statement)))
        for name, statement in statements(service)
    }
    assert len(found) > 10
    assert {name: reads for name, reads in found.items() if reads} == {}


@pytest.mark.parametrize("service", ["payment"])
async def test_control_with_hash_joins_a_whole_table_is_read(
    connection: Connection, service: str
) -> None:
    await connection.session.execute("SET enable_hashjoin = on")
    assert [
        name
        for name, statement in statements(service)
        if list(whole_reads(name, await plan_of(connection, statement)))
    ]
