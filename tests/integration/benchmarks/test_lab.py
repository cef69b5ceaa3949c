"""The lab on real servers: its audits find planted damage, and each strategy does what it is said
to do, in the smallest run in which that shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import asyncpg
import pytest

from benchmarks.lab.counters import DATABASE
from benchmarks.lab.experiment import Answers, Books
from benchmarks.lab.experiments import EXPERIMENTS
from benchmarks.lab.laboratory import Servers, opened_laboratory
from benchmarks.lab.size import Size
from benchmarks.lab.tools import TOUCHES
from deploy.local.postgres import PostgresServer
from deploy.local.valkey import ValkeyServer

FAST_DEADLOCKS: Final = f'ALTER DATABASE "{DATABASE}" SET deadlock_timeout = 20'
RUN: Final = {
    "charge": {"none", "around", "inside", "lane", "lane-each"},
    "deduct": set(EXPERIMENTS["deduct"].strategies) - {"share", "optimistic+1"},
    "uniform": {"none", "queue"},
}
"""What of an experiment is run, if not all: those on accounts share their code. ``share`` would
deadlock until its time limit, and show no more than ``unsorted``."""


@dataclass(frozen=True)
class Planted:
    """Tables that are changed by hand, and what the audit must say of them."""

    name: str
    experiment: str
    size: Size
    changes: str
    told: dict[int, int]
    """Requests that were confirmed, by thing."""
    found: Books
    gateway: tuple[tuple[int, int], ...] = ()


COUPONS = Size(requests=3, quantity=2)
ORDERS = Size(requests=2, things=2, quantity=1)
PLANTED: Final = (
    Planted(
        "nothing wrong",
        "deduct",
        Size(requests=2, quantity=1000, amount=-500),
        "UPDATE accounts SET balance = 0",
        {0: 2},
        Books(),
    ),
    Planted(
        "a change is lost",
        "deduct",
        Size(requests=2, quantity=1000, amount=-500),
        "UPDATE accounts SET balance = 500",
        {0: 2},
        Books(lost=1),
    ),
    Planted(
        "a change is made twice",
        "charge",
        Size(requests=1, quantity=100, amount=100),
        "UPDATE accounts SET balance = 300",
        {0: 1},
        Books(doubled=1),
    ),
    Planted(
        "a user has two coupons",
        "coupons",
        COUPONS,
        "INSERT INTO coupons VALUES (0, 7), (0, 7); UPDATE campaigns SET issued = 2",
        {0: 2},
        Books(doubled=1),
    ),
    Planted(
        "more coupons than there are, and the counter lost one",
        "coupons",
        COUPONS,
        "INSERT INTO coupons VALUES (0, 1), (0, 2), (0, 3); UPDATE campaigns SET issued = 2",
        {0: 3},
        Books(lost=1, oversold=1),
    ),
    Planted(
        "a coupon was promised and is not there",
        "coupons",
        COUPONS,
        "INSERT INTO coupons VALUES (0, 1); UPDATE shares SET issued = 1 WHERE share = 0",
        {0: 2},
        Books(lost=1),
    ),
    Planted(
        "a product's count lost an order",
        "orders",
        ORDERS,
        "INSERT INTO orders VALUES (1, 0), (1, 1); UPDATE products SET reserved = id",
        {0: 1},
        Books(lost=1),
    ),
    Planted(
        "a product is oversold",
        "orders",
        ORDERS,
        "INSERT INTO orders VALUES (1, 0), (1, 1), (2, 0), (2, 1);UPDATE products SET reserved = 2",
        {0: 1, 1: 1},
        Books(oversold=2),
    ),
    Planted(
        "the gateway took the money twice",
        "payments",
        Size(requests=1),
        "UPDATE payments SET state = 'DONE'",
        {0: 1},
        Books(doubled=1),
        gateway=((0, 2),),
    ),
    Planted(
        "a payment is not done",
        "payments",
        Size(requests=1),
        "UPDATE payments SET state = 'BUSY'",
        {},
        Books(lost=1),
        gateway=((0, 1),),
    ),
    Planted(
        "a seat is sold twice",
        "seats",
        Size(requests=2),
        "UPDATE seats SET state = 'SOLD'; INSERT INTO sales VALUES (0, 1), (0, 2)",
        {0: 2},
        Books(doubled=1),
    ),
    Planted(
        "a sale is lost",
        "seats",
        Size(requests=1),
        "UPDATE seats SET state = 'SOLD'",
        {0: 1},
        Books(lost=1),
    ),
)


@pytest.fixture
async def connection(postgres_server: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
    """A session in an empty schema, which is rolled back."""
    session = await asyncpg.connect(postgres_server.admin_url)
    transaction = session.transaction()
    await transaction.start()
    await session.execute("CREATE SCHEMA lab_audit; SET LOCAL search_path = lab_audit")
    yield session
    await transaction.rollback()
    await session.close()


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
async def test_audit_finds_what_was_planted(
    planted: Planted, connection: asyncpg.Connection
) -> None:
    experiment = EXPERIMENTS[planted.experiment]
    await connection.execute(experiment.schema)
    await experiment.fill(connection, planted.size)
    await connection.execute(planted.changes)
    answers = Answers(succeeded=Counter(planted.told), gateway=Counter(dict(planted.gateway)))
    assert await experiment.audit(connection, planted.size, answers) == planted.found


@pytest.mark.timeout(300)
async def test_each_strategy_keeps_or_breaks_the_books_as_marked(
    postgres_server: PostgresServer, valkey_server: ValkeyServer
) -> None:
    servers = Servers(postgres_server.admin_url, valkey_server.url)
    differ = []
    async with opened_laboratory(servers, 2) as laboratory:
        postgres_server.run_sql(FAST_DEADLOCKS)
        for key, experiment in EXPERIMENTS.items():
            for name, strategy in experiment.strategies.items():
                if name not in RUN.get(key, experiment.strategies):
                    continue
                found = await laboratory.run(experiment, name, experiment.tiny, seed=1)
                assert found.unfinished == 0, (key, name)
                if (found.wrong == 0) != strategy.right:
                    differ.append((key, name, found))
                if experiment.interferer:
                    touched = postgres_server.run_sql("SELECT touched FROM accounts", DATABASE)
                    assert int(touched) == TOUCHES * found.asked, name
    assert differ == []
    postgres_server.drop_database(DATABASE)
