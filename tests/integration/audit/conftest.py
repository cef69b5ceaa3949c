"""Clean books in four databases and a gateway record, made once; a test changes copies of them."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from common.urls import engine_url
from deploy.audit.audit import Limits, check_books
from deploy.audit.audit_pass import AuditPass
from deploy.audit.snapshots import Books as Snapshots
from deploy.audit.sources import Sources
from deploy.local.plan import SERVICES
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_files import SUPERUSER
from tests.integration.audit.books import balance, coupon
from tests.integration.audit.order_books import order
from tests.integration.audit.payment_books import on_gateway, payment, write_gateway
from tests.integration.audit.seat_books import seats
from tests.integration.audit.share_books import shares
from tests.support.databases import Databases

SHIFT = """
DO $$
DECLARE one record;
BEGIN
    IF to_regclass('heartbeat') IS NOT NULL THEN
        UPDATE heartbeat SET runs = (
               SELECT range_agg(tstzrange(lower(run) - interval '{age}',
                                          upper(run) - interval '{age}'))
                 FROM unnest(runs) AS run);
    END IF;
    FOR one IN SELECT table_name, string_agg(
                          format('%I = %I - interval ''{age}''', column_name, column_name), ', ')
                          AS changes
                 FROM information_schema.columns
                WHERE table_schema = 'public' AND data_type = 'timestamp with time zone'
                GROUP BY table_name
    LOOP
        EXECUTE format('UPDATE %I SET %s', one.table_name, one.changes);
    END LOOP;
    IF to_regclass('sagas') IS NOT NULL THEN
        UPDATE sagas SET steps = (
               SELECT jsonb_agg(step || jsonb_build_object(
                          'begin_time', (step ->> 'begin_time')::timestamptz - interval '{age}',
                          'end_time', (step ->> 'end_time')::timestamptz - interval '{age}'))
                 FROM jsonb_array_elements(steps) AS step);
    END IF;
END $$
"""
"""Changes every time in a database."""


BOOKS: Final = {"balance": balance, "coupon": coupon, "order": order, "payment": payment}
_MORE = {"coupon": shares, "order": seats}


@dataclass
class Books:
    """The databases and the gateway's record of one test."""

    server: PostgresServer
    urls: dict[str, str]
    gateway_record: Path
    copies: list[str] = field(default_factory=list)

    @property
    def sources(self) -> Sources:
        return Sources(self.urls, self.gateway_record)

    def change(self, where: str, script: str) -> None:
        """Change a copy of one service's database, or the gateway's record, by SQL."""
        if where == "gateway":
            on_gateway(self.gateway_record, script)
            return
        name = _database(self.urls[where])
        if name not in self.copies:
            copy = f"test_audit_{where}_{uuid.uuid4().hex[:12]}"
            urls = self.server.create_database(copy, service=where, template=name)
            self.copies.append(copy)
            self.urls[where], name = urls.audit, copy
        self.server.run_sql(script, database=name)

    def shift(self, where: str, age: str) -> None:
        """Let everything in one service's book have happened ``age`` earlier."""
        self.change(where, SHIFT.format(age=age))


@dataclass(frozen=True)
class Planted:
    """Sessions with the clean databases, which are kept: no test has to copy or to connect."""

    connections: dict[str, AsyncConnection]
    clean_gateway: Path

    async def pass_with(self, where: str, script: str, since: datetime | None = None) -> AuditPass:
        """What one pass finds after a change of one book, which is undone afterwards.

        The checks run in the transaction of the change; ``since``: those of what was touched since.
        """
        async with AsyncExitStack() as exits:
            for service, connection in self.connections.items():
                await connection.execute(sa.text("SELECT 1"))  # begins the transaction
                exits.push_async_callback(connection.rollback)
                if service == where:
                    driver = (await connection.get_raw_connection()).driver_connection
                    assert driver is not None
                    await driver.execute(script)
            gateway = exits.enter_context(closing(sqlite3.connect(self.clean_gateway)))
            gateway.row_factory = sqlite3.Row
            if where == "gateway":
                # Not by executescript(), which commits first.
                gateway.execute("BEGIN")
                for statement in filter(str.strip, script.split(";\n")):
                    gateway.execute(statement.strip().rstrip(";"))
            times = None if since is None else dict.fromkeys(SERVICES, since)
            return await check_books(Snapshots(self.connections, gateway), Limits(), times)


def _database(url: str) -> str:
    return str(make_url(url).database)


@pytest.fixture(scope="module")
def clean_urls(databases: Databases) -> Iterator[dict[str, str]]:
    with ExitStack() as exits:
        urls = {
            service: exits.enter_context(databases.clone(service)).audit for service in SERVICES
        }
        for service, url in urls.items():
            rows = BOOKS[service]() + _MORE.get(service, str)()
            databases.server.run_sql(rows, database=_database(url))
        yield urls


@pytest.fixture(scope="module")
def clean_gateway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    record = tmp_path_factory.mktemp("gateway") / "gateway.sqlite3"
    write_gateway(record)
    return record


@pytest.fixture
def books(
    databases: Databases, clean_urls: dict[str, str], clean_gateway: Path, tmp_path: Path
) -> Iterator[Books]:
    record = tmp_path / "gateway.sqlite3"
    shutil.copy(clean_gateway, record)
    books = Books(databases.server, dict(clean_urls), record)
    yield books
    for copy in books.copies:
        books.server.drop_database(copy)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planted(
    databases: Databases, clean_urls: dict[str, str], clean_gateway: Path
) -> AsyncIterator[Planted]:
    password = databases.server.files.passwords[SUPERUSER]
    async with AsyncExitStack() as exits:
        connections = {}
        for service, url in clean_urls.items():
            engine = create_async_engine(
                make_url(engine_url(url)).set(username=SUPERUSER, password=password),
                poolclass=NullPool,
                connect_args={"server_settings": {"jit": "off", "timezone": "UTC"}},
            )
            connections[service] = await exits.enter_async_context(engine.connect())
        yield Planted(connections, clean_gateway)
