"""The four services through a real PgBouncer in transaction mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local.gateway.simulator import GatewaySimulator
from deploy.local.postgres import PostgresServer
from tests.pooler.pgbouncer import PgBouncer
from tests.support.databases import Databases, StackDatabases
from tests.support.sale import assert_all_sold
from tests.support.stack import Wire, running_stack

ORDERS = 200


@pytest.fixture
def settings() -> dict[str, str]:
    return {"max_prepared_statements": "200"}


@pytest.fixture
def pgbouncer(
    postgres_server: PostgresServer, databases: Databases, settings: dict[str, str], tmp_path: Path
) -> Iterator[PgBouncer]:
    for service in ("balance", "coupon", "order", "payment"):
        postgres_server.provision(service)
    with PgBouncer(tmp_path, postgres_server, settings) as running:
        yield running


async def test_sale(
    pgbouncer: PgBouncer,
    databases: Databases,
    gateway: GatewaySimulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TALLY_POOLER", "transaction")
    with databases.clone_all() as cloned:
        urls = {
            service: replace(each, runtime=pgbouncer.url(each.runtime))
            for service, each in cloned.urls.items()
        }
        pooled = StackDatabases(urls, cloned.server)
        async with running_stack(pooled, gateway, "", Wire()) as stack:
            await assert_all_sold(stack, ORDERS)
