"""The order of ``order_and_pay`` as a DBOS workflow, in one process without gRPC.

Three steps, each a transaction that DBOS records together with its effect: create the order and
reserve its stock, deduct the balance, complete the order. A line of JSON on standard input names
the load; the process runs it in a closed loop and answers with a line of JSON. It ends when its
standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from typing import Final

import sqlalchemy as sa
import uvloop
from dbos import DBOS, AsyncSQLAlchemyDatasource, DBOSConfig

from benchmarks.load.loop import closed_loop

DATABASE_URL: Final = "BENCH_DATABASE_URL"
POOL_SIZE: Final = 20
LINES: Final = 3
PRICE_MINOR: Final = 1000

_SCHEMA: Final = """
    CREATE TABLE products (product_id int PRIMARY KEY, stock bigint, reserved bigint, sold bigint);
    CREATE TABLE accounts (user_id text PRIMARY KEY, available_minor bigint, version bigint);
    CREATE TABLE entries (user_id text, sequence bigint, order_id text, amount_minor bigint,
                          PRIMARY KEY (user_id, sequence));
    CREATE TABLE orders (order_id text PRIMARY KEY, user_id text, product_ids int[],
                         total_minor bigint, state text);
    INSERT INTO products SELECT n, 1000000000000, 0, 0 FROM generate_series(0, {products} - 1) n;
    INSERT INTO accounts SELECT 'user-' || n, 100000000000000, 1
      FROM generate_series(0, {accounts} - 1) n
"""
_LOCK_PRODUCTS: Final = sa.text(
    "SELECT product_id FROM products WHERE product_id = ANY(:ids) ORDER BY product_id FOR UPDATE"
)
_RESERVE: Final = sa.text(
    "UPDATE products SET stock = stock - 1, reserved = reserved + 1 WHERE product_id = ANY(:ids)"
)
_INSERT_ORDER: Final = sa.text("INSERT INTO orders VALUES (:order, :user, :ids, :total, 'PENDING')")
_DEDUCT: Final = sa.text(
    "UPDATE accounts SET available_minor = available_minor - :total, version = version + 1"
    " WHERE user_id = :user AND available_minor >= :total RETURNING version"
)
_INSERT_ENTRY: Final = sa.text("INSERT INTO entries VALUES (:user, :sequence, :order, -:total)")
_SELL: Final = sa.text(
    "UPDATE products SET reserved = reserved - 1, sold = sold + 1 WHERE product_id = ANY(:ids)"
)
_COMPLETE: Final = sa.text("UPDATE orders SET state = 'PAID' WHERE order_id = :order")


class Orders:
    """The workflow's transactions on one datasource."""

    def __init__(self, source: AsyncSQLAlchemyDatasource) -> None:
        self._source = source

    async def create(self, order: str, user: str, ids: list[int]) -> int:
        session, total = self._source.sql_session(), LINES * PRICE_MINOR
        await session.execute(_LOCK_PRODUCTS, {"ids": ids})
        await session.execute(_RESERVE, {"ids": ids})
        await session.execute(
            _INSERT_ORDER, {"order": order, "user": user, "ids": ids, "total": total}
        )
        return total

    async def deduct(self, order: str, user: str, total: int) -> None:
        session = self._source.sql_session()
        taken = await session.execute(_DEDUCT, {"user": user, "total": total})
        values = {"user": user, "sequence": taken.scalar_one(), "order": order, "total": total}
        await session.execute(_INSERT_ENTRY, values)

    async def complete(self, order: str, ids: list[int]) -> None:
        session = self._source.sql_session()
        await session.execute(_LOCK_PRODUCTS, {"ids": ids})
        await session.execute(_SELL, {"ids": ids})
        await session.execute(_COMPLETE, {"order": order})


async def main(products: int, accounts: int) -> None:
    url = os.environ[DATABASE_URL]
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": url,
        "sys_db_pool_size": POOL_SIZE,
        "log_level": "ERROR",
    }
    DBOS(config=config)
    asynchronous = url.replace("postgresql://", "postgresql+asyncpg://")
    source = await AsyncSQLAlchemyDatasource.create(asynchronous, {"pool_size": POOL_SIZE})
    async with source.engine.begin() as connection:
        for statement in _SCHEMA.format(products=products, accounts=accounts).split(";"):
            await connection.exec_driver_sql(statement)
    orders = Orders(source)

    @DBOS.workflow()
    async def order_and_pay(user: str, ids: list[int]) -> None:
        order = DBOS.workflow_id or ""
        total = await source.run_tx_step_async(None, orders.create, order, user, ids)
        await source.run_tx_step_async(None, orders.deduct, order, user, total)
        await source.run_tx_step_async(None, orders.complete, order, ids)

    async def step() -> None:
        ids = sorted(random.sample(range(products), LINES))
        await order_and_pay(f"user-{random.randrange(accounts)}", ids)

    DBOS.launch()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    while line := await reader.readline():
        load = json.loads(line)
        sample = await closed_loop(step, callers=load["callers"], seconds=load["seconds"])
        print(json.dumps([sample.seconds, sample.latencies_s, sample.failed]), flush=True)
    DBOS.destroy()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
