"""A database for each test, cloned from one that was migrated once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import pytest

from common.db.migrations import migrate
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls

ROOT = Path(__file__).parents[2]
C_LOCALE: Final = "LOCALE_PROVIDER libc LOCALE 'C'"
"""Options of CREATE DATABASE with which it may have any encoding."""
SERVICES: Final = ("balance", "coupon", "order", "payment")


def name_of(urls: ServiceUrls) -> str:
    """The database's name."""
    return urlsplit(urls.owner).path.removeprefix("/")


@asynccontextmanager
async def open_transaction(urls: ServiceUrls, statement: str) -> AsyncIterator[None]:
    """Another transaction of the service, open until the end of the block."""
    connection = await asyncpg.connect(urls.runtime)
    try:
        async with connection.transaction():
            await connection.execute(statement)
            yield
    finally:
        await connection.close()


@dataclass(frozen=True)
class StackDatabases:
    """A database for each service."""

    urls: Mapping[str, ServiceUrls]
    server: PostgresServer

    async def sql(self, service: str, text: str) -> str:
        """Run SQL in a service's database as superuser.

        In a thread: it may wait for a lock that this process has.
        """
        name = name_of(self.urls[service])
        return await asyncio.to_thread(self.server.run_sql, text, database=name)

    @contextmanager
    def away(self, service: str) -> Iterator[None]:
        """Refuse connections to a service's database, and end those that are open."""
        name = name_of(self.urls[service])
        self.server.run_sql(
            f'ALTER DATABASE "{name}" CONNECTION LIMIT 0;'
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        try:
            yield
        finally:
            self.server.run_sql(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')


class Databases:
    """Clones of each service's migrated database."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._templates: dict[str, str] = {}

    @contextmanager
    def clone(self, service: str) -> Iterator[ServiceUrls]:
        """A fresh database of ``service`` with its newest schema, dropped afterwards."""
        template = self._template(service)
        name = f"test_{service}_{uuid.uuid4().hex[:12]}"
        urls = self.server.create_database(name, service=service, template=template)
        try:
            yield urls
        finally:
            self.server.drop_database(name)

    @contextmanager
    def clone_all(self) -> Iterator[StackDatabases]:
        """A fresh database of each service, dropped afterwards."""
        with ExitStack() as stack:
            urls = {service: stack.enter_context(self.clone(service)) for service in SERVICES}
            yield StackDatabases(urls, self.server)

    def _template(self, service: str) -> str:
        if service not in self._templates:
            self.server.provision(service)
            name = f"template_{service}_{uuid.uuid4().hex[:12]}"
            urls = self.server.create_database(name, service=service)
            versions = ROOT / f"{service}_service" / "migrations"
            with ThreadPoolExecutor(1) as thread:  # a fixture's own event loop may be running
                thread.submit(asyncio.run, migrate(urls.owner, versions)).result()
            self._templates[service] = name
        return self._templates[service]


@contextmanager
def created(
    server: PostgresServer, options: str, service: str = "balance"
) -> Iterator[ServiceUrls]:
    """An empty database with these options of CREATE DATABASE, dropped afterwards."""
    server.provision(service)
    name = f"test_created_{uuid.uuid4().hex[:12]}"
    server.run_sql(
        f'CREATE DATABASE "{name}" OWNER "tally_{service}_owner" TEMPLATE template0 {options};'
        f'GRANT CONNECT ON DATABASE "{name}" TO "tally_{service}_runtime"'
    )
    try:
        yield server.urls(service, name)
    finally:
        server.drop_database(name)


def clone_of(service: str) -> Any:
    """A fixture: a fresh database of the service for each test."""

    @pytest.fixture(name=f"{service}_database")
    def database(databases: Databases) -> Iterator[ServiceUrls]:
        with databases.clone(service) as urls:
            yield urls

    return database
