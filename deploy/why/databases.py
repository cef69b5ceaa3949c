"""The databases of all services, read one by one: what cannot be read is left out, and named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deploy.audit.errors import CannotAudit
from deploy.audit.snapshots import connect, database_errors
from deploy.why.event import Row
from deploy.why.selection import rows

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Databases:
    """A session with each database that answers."""

    connections: dict[str, AsyncConnection]
    unread: dict[str, str] = field(default_factory=dict)
    """By service, why its database is not read, or not as far as asked."""

    async def read(
        self, service: str, work: Callable[[AsyncConnection], Awaitable[T]], default: T
    ) -> T:
        """What ``work`` reads of the service's database; the default once that has failed."""
        if service in self.unread:
            return default
        try:
            with database_errors(service):
                return await work(self.connections[service])
        except CannotAudit as error:
            self.unread[service] = str(error)
            return default

    async def rows(self, service: str, sql: str, **parameters: object) -> list[Row]:
        """The rows of the statement; none if the database cannot be read."""
        return await self.read(service, lambda one: rows(one, sa.text(sql), **parameters), [])


@asynccontextmanager
async def open_sessions(urls: Mapping[str, str]) -> AsyncIterator[Databases]:
    """A session with each database. Raises CannotAudit if none answers."""
    databases = Databases({})
    async with AsyncExitStack() as exits:
        for service, url in urls.items():
            try:
                connection = await exits.enter_async_context(connect(service, url))
            except CannotAudit as error:
                databases.unread[service] = str(error)
            else:
                databases.connections[service] = connection
        if not databases.connections:
            raise CannotAudit(next(iter(databases.unread.values())))
        yield databases
