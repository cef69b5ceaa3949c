"""Races: many rivals at once over several replicas of one service, seen from outside too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar

import grpc
import pytest

from common.settings import ServiceSettings
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tests.support.databases import Databases, name_of
from tests.support.refusals import Results, final_outcome, outcome
from tests.support.replicas import Build, channel, replicas

C = TypeVar("C")
K = TypeVar("K")
S = TypeVar("S", bound=ServiceSettings)

RIVALS = 100

without_redis = pytest.mark.parametrize("redis_url", [""], ids=["no-redis"])
"""For tests of a single guard: Redis would keep the rivals from meeting."""


@dataclass(frozen=True)
class Crowd(Generic[C]):
    """The replicas of one service, a client of each, and their database."""

    clients: Sequence[C]
    urls: ServiceUrls
    server: PostgresServer

    def turn(self, number: int) -> C:
        """The client of the replica whose turn it is."""
        return self.clients[number % len(self.clients)]

    def sql(self, text: str) -> str:
        """Run SQL as superuser; returns its output, unaligned."""
        return self.server.run_sql(text, database=name_of(self.urls))

    def number(self, query: str) -> int:
        """The one number that a query returns."""
        return int(self.sql(query).strip())

    async def call(self, turn: int, method: str, request: Any) -> Any:
        """The final outcome at one replica: a response, or the reason of a refusal.

        ``method``: the clients' method, with dots.
        """
        call = attrgetter(method)(self.turn(turn))
        return await final_outcome(lambda: call(request))

    async def race(
        self, method: str, requests: Iterable[Any], *, until_final: bool = False
    ) -> Results:
        """Make all calls at once, in turns over the replicas.

        ``until_final``: each is made again while conflicts keep it from being decided.
        """

        async def one(turn: int, request: Any) -> Any:
            return await outcome(attrgetter(method)(self.turn(turn))(request))

        if until_final:
            return Results.of(await self.outcomes(method, requests))
        return Results.of(await asyncio.gather(*(one(*each) for each in enumerate(requests))))

    async def outcomes(self, method: str, requests: Iterable[Any]) -> list[Any]:
        """The final outcome of each call, in their order; all are made at once, in turns."""
        return await asyncio.gather(
            *(self.call(turn, method, request) for turn, request in enumerate(requests))
        )


def crowd_fixture(
    service: str,
    client: Callable[[grpc.aio.Channel], Any],
    settings_type: type[S],
    build: Build[S],
    *,
    count: int = 2,
    **settings: Any,
) -> Any:
    """A fixture: replicas of the service on a database of the test's own, with Redis and without.

    ``client`` makes a client of a channel.
    """

    @pytest.fixture(name="crowd")
    async def crowd(databases: Databases, redis_url: str) -> AsyncIterator[Crowd[Any]]:
        given = {**settings, "redis_url": redis_url}
        async with AsyncExitStack() as stack:
            urls = stack.enter_context(databases.clone(service))
            addresses = await stack.enter_async_context(
                replicas(count, settings_type, build, database_url=urls.runtime, **given)
            )
            channels = [await stack.enter_async_context(channel(each)) for each in addresses]
            yield Crowd([client(opened) for opened in channels], urls, databases.server)

    return crowd


async def in_groups(play: Callable[[K], Awaitable[None]], keys: Sequence[K], at_once: int) -> None:
    """Call ``play`` with each key, ``at_once`` at a time."""
    for first in range(0, len(keys), at_once):
        await asyncio.gather(*map(play, keys[first : first + at_once]))
