"""One replica of each service and the empty method; then what else Tally is compared with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from yarl import URL

from benchmarks import bulk_workloads, seat_workloads, workloads
from benchmarks.load.clients import clients
from benchmarks.measure import Place
from benchmarks.servers import orm_server
from benchmarks.servers.dbos import dbos
from benchmarks.servers.pgbench import PgbenchSubject
from benchmarks.shop import Shop, stock
from benchmarks.stacks import addresses, admin_url, create_database, replica, server
from benchmarks.subjects import GrpcSubject, Subject
from benchmarks.workloads import Workload
from deploy.local.stack import Stack

EMPTY: Final = "benchmarks.servers.empty_server"
ORM: Final = "benchmarks.servers.orm_server"
LIMITED: Final = frozenset({"deduct-limited", "deduct-limited-hot"})
COMPARISONS: Final = LIMITED | {"orm", "orm-hot", "dbos", "pgbench"}
LIMITS: Final = {
    "RATE_LIMITS": "true",
    # A share of 5 a second: one account is above it, each of 10,000 below. None reaches its limit.
    "RATE_LIMIT_WRITES": "10000:1000000",
    "RATE_LIMIT_REPLICAS": "1000",
}
"""Settings of the replica that limits rates."""


def tally(shop: Shop) -> dict[str, Callable[[Shop], Workload]]:
    """The workloads on Tally, by the names that the rows use."""
    accounts = shop.size.accounts
    return {
        "deduct": partial(workloads.deduct, accounts=accounts),
        "deduct-hot": partial(workloads.deduct, accounts=1),
        "charge": partial(workloads.charge, accounts=accounts),
        "charge-hot": partial(workloads.charge, accounts=1),
        "get-balance": workloads.get_balance,
        "get-product": workloads.get_product,
        "get-order": workloads.get_order,
        "issue": workloads.issue_coupon,
        "order": partial(workloads.create_order, hot=False),
        "order-hot": partial(workloads.create_order, hot=True),
        "order-seats": seat_workloads.create_order_with_seats,
        "batch-write": bulk_workloads.batch_write,
        "batch-issue": bulk_workloads.batch_issue_coupons,
        "pay": workloads.order_and_pay,
        "pay-all": workloads.order_and_pay_by_all,
    }


@asynccontextmanager
async def place(stack: Stack, shop: Shop) -> AsyncIterator[Place]:
    """Stock the shop; the workloads on Tally, and the empty method."""
    servers, logs = addresses(stack), stack.plan.data_dir / "logs"
    async with server("empty", EMPTY, logs=logs) as empty:
        servers["empty"] = [empty]
        async with clients("http2", servers) as connected:
            await stock(shop, connected)
        subjects: dict[str, Subject] = {"empty": GrpcSubject(workloads.empty(shop), servers)}
        for name, workload in tally(shop).items():
            subjects[name] = GrpcSubject(workload(shop), servers)
        yield Place(subjects, admin_url(stack), stack.plan.data_dir)


@asynccontextmanager
async def comparisons(
    stack: Stack, shop: Shop, needed: AbstractSet[str]
) -> AsyncIterator[dict[str, Subject]]:
    """What Tally is compared with, of the names in ``needed``.

    The processes end with the block: even when idle they use processor time.
    """
    subjects: dict[str, Subject] = {}
    async with AsyncExitStack() as exits:
        if needed & {"orm", "orm-hot"}:
            subjects |= await _orm(stack, shop, stack.plan.data_dir / "logs", exits)
        if needed & LIMITED:
            limited = replica(stack, "balance", **LIMITS)
            servers = {"limited": [await exits.enter_async_context(limited)]}
            subjects |= _deductions("deduct-limited", "limited", servers, shop)
        if "dbos" in needed:
            url = await create_database(stack, "dbos")
            subjects["dbos"] = await exits.enter_async_context(
                dbos(url, products=shop.size.products, accounts=shop.size.accounts)
            )
        if "pgbench" in needed:
            pgbench = PgbenchSubject(URL(await create_database(stack, "pgbench")))
            await pgbench.create_tables()
            subjects["pgbench"] = pgbench
        yield subjects


async def _orm(
    stack: Stack, shop: Shop, logs: Path, exits: AsyncExitStack
) -> dict[str, GrpcSubject]:
    url = URL(await create_database(stack, "orm")).with_scheme("postgresql+asyncpg")
    environment = {
        orm_server.DATABASE_URL: str(url),
        orm_server.REDIS_URL: stack.backends.redis_url,
    }
    running = server("orm", ORM, shop.size.accounts, logs=logs, **environment)
    servers = {"orm": [await exits.enter_async_context(running)]}
    return _deductions("orm", "orm", servers, shop)


def _deductions(
    name: str, server_name: str, servers: Mapping[str, Sequence[str]], shop: Shop
) -> dict[str, GrpcSubject]:
    """Deductions from all accounts, and from one, on another server than Tally's own."""
    return {
        subject: GrpcSubject(workloads.deduct(shop, accounts=accounts, server=server_name), servers)
        for subject, accounts in ((name, shop.size.accounts), (f"{name}-hot", 1))
    }
