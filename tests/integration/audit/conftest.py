"""A clean book over four databases and a gateway, made once; each test spoils copies of it."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from deploy.audit.sources import SERVICES, Sources
from deploy.local.postgres import PostgresServer
from tests.integration.audit.books import BOOKS, on_gateway, write_gateway
from tests.support.databases import Databases


@dataclass
class Book:
    """All databases and the gateway's record; what a test changes is a copy of its own."""

    server: PostgresServer
    urls: dict[str, str]
    gateway_record: Path
    copies: list[str] = field(default_factory=list)

    @property
    def sources(self) -> Sources:
        return Sources(self.urls, self.gateway_record)

    def spoil(self, where: str, script: str) -> None:
        """Change one of the books behind the services' backs."""
        if where == "gateway":
            on_gateway(self.gateway_record, script)
            return
        name = make_url(self.urls[where]).database
        assert name is not None
        if name not in self.copies:
            copy = f"test_audit_{where}_{uuid.uuid4().hex[:12]}"
            urls = self.server.create_database(copy, service=where, template=name)
            self.copies.append(copy)
            self.urls[where], name = urls.audit, copy
        self.server.run_sql(script, database=name)


@pytest.fixture(scope="module")
def clean_urls(databases: Databases) -> Iterator[dict[str, str]]:
    with ExitStack() as exits:
        urls = {}
        for service in SERVICES:
            urls[service] = exits.enter_context(databases.clone(service)).audit
            name = make_url(urls[service]).database
            assert name is not None
            databases.server.run_sql(BOOKS[service](), database=name)
        yield urls


@pytest.fixture(scope="module")
def clean_gateway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    record = tmp_path_factory.mktemp("gateway") / "gateway.sqlite3"
    write_gateway(record)
    return record


@pytest.fixture
def book(
    databases: Databases, clean_urls: dict[str, str], clean_gateway: Path, tmp_path: Path
) -> Iterator[Book]:
    record = tmp_path / "gateway.sqlite3"
    shutil.copy(clean_gateway, record)
    book = Book(databases.server, dict(clean_urls), record)
    yield book
    for copy in book.copies:
        book.server.drop_database(copy)
