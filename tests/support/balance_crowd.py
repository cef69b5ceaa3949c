"""A balance service of two replicas before a crowd, and its guards taken away from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from balance_service import store, tables
from balance_service.settings import BalanceSettings
from balance_service.wiring import build
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from tally.balance.v1 import balance_pb2 as pb
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tests.support.replicas import channel, replicas


@dataclass(frozen=True)
class Crowd:
    """The service, one stub per replica, and its database from outside."""

    stubs: Sequence[Any]
    server: PostgresServer
    urls: ServiceUrls

    @property
    def database(self) -> str:
        return urlsplit(self.urls.runtime).path.removeprefix("/")

    def turn(self, number: int) -> Any:
        """The replica whose turn it is."""
        return self.stubs[number % len(self.stubs)]

    def number(self, sql: str) -> int:
        """One number read as superuser."""
        return int(self.server.run_sql(sql, database=self.database).strip())

    def run(self, sql: str) -> None:
        self.server.run_sql(sql, database=self.database)

    async def available(self, user_id: str) -> int:
        request = pb.GetBalanceRequest(user_id=user_id, currency_code="KRW")
        got = await self.stubs[0].GetBalance(request)
        return int(got.balance.available.amount_minor)

    def assert_books(self) -> None:
        """Every balance is the sum of its entries and its last balance_after; no gaps."""
        wrong = self.number(
            """
            SELECT count(*) FROM accounts a LEFT JOIN (
                SELECT user_id, currency_code, sum(amount_minor) AS total, count(*) AS entries,
                       max(sequence) AS last,
                       (array_agg(balance_after_minor ORDER BY sequence DESC))[1] AS after
                FROM ledger_entries GROUP BY user_id, currency_code) e
            USING (user_id, currency_code)
            WHERE (a.available_minor, a.available_minor, a.version, a.version) IS DISTINCT FROM
                  (coalesce(e.total, 0), coalesce(e.after, 0), coalesce(e.entries, 0),
                   coalesce(e.last, 0));
            """
        )
        assert wrong == 0


@asynccontextmanager
async def crowded(
    urls: ServiceUrls, server: PostgresServer, redis_url: str
) -> AsyncIterator[Crowd]:
    async with (
        replicas(
            2, BalanceSettings, build, database_url=urls.runtime, redis_url=redis_url
        ) as addresses,
        channel(addresses[0]) as one,
        channel(addresses[1]) as other,
    ):
        yield Crowd([BalanceServiceStub(one), BalanceServiceStub(other)], server, urls)


def forget_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the version comparison from the write: the second line of an optimistic charge."""
    changed = store._changed
    accounts = tables.accounts
    blind = (
        sa.update(accounts)
        .values(
            available_minor=changed.c.available_minor,
            version=changed.c.version,
            update_time=changed.c.update_time,
        )
        .where(
            accounts.c.user_id == changed.c.user_id,
            accounts.c.currency_code == changed.c.currency_code,
        )
        .returning(accounts.c.user_id, accounts.c.currency_code)
    )
    monkeypatch.setattr(store, "_SAVE", blind)


def drop_constraints(crowd: Crowd) -> None:
    """Take the last line away."""
    crowd.run(
        f"""
        ALTER TABLE ledger_entries DROP CONSTRAINT {tables.SEQUENCE_ONCE};
        ALTER TABLE accounts DROP CONSTRAINT {tables.AVAILABLE_NOT_NEGATIVE};
        """
    )
