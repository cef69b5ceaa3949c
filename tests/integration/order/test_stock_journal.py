"""The stock journal: what was ever stocked of each product, and by which request, for good."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import asyncpg
import pytest

from common.db.migrations import migrate
from deploy.audit import order as audit_of_orders
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from order_service.store import product as product_store
from tests.support.databases import name_of
from tests.support.orders import Shop, create_product, restock
from tests.support.refusals import refused

JOURNAL = (
    "SELECT kind, request_id, quantity, stocked_after, product_version FROM stock_entries"
    " ORDER BY product_version"
)
FORGET_ANSWERS = "DELETE FROM answers"
"""As the clean-up does after 30 days."""


def earlier_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the replicas write no entries."""
    monkeypatch.setattr(product_store, "adding_entries", Mock(return_value=[]))


async def test_each_stocking_has_one_entry(shop: Shop, sql: Callable[[str], str]) -> None:
    tea = (await shop.products.CreateProduct(create_product("c1", 7))).product.product_id
    for _ in range(2):
        await shop.products.RestockProduct(restock(tea, 5, "r1"))
    await shop.order("ann", {tea: 3})
    assert sql(JOURNAL).split() == ["CREATED|c1|7|7|1", "RESTOCKED|r1|5|12|2"]


async def test_repeat_after_its_answer_is_deleted_is_refused(
    shop: Shop, sql: Callable[[str], str]
) -> None:
    tea = (await shop.products.CreateProduct(create_product("same", 7))).product.product_id
    await shop.products.RestockProduct(restock(tea, 5, "same"))
    sql(FORGET_ANSWERS)
    for call, request in (
        (shop.products.CreateProduct, create_product("same", 7)),
        (shop.products.RestockProduct, restock(tea, 5, "same")),
    ):
        with refused("REQUEST_ID_REUSED"):
            await call(request)
    assert await shop.stock(tea) == (12, 0, 0)
    assert sql("SELECT count(*) FROM products").strip() == "1"


async def test_refused_repeat_leaves_the_others_of_its_batch(
    shop: Shop, sql: Callable[[str], str]
) -> None:
    tea = await shop.product(0)
    await shop.products.RestockProduct(restock(tea, 1, "r1"))
    sql(FORGET_ANSWERS)
    calls = [shop.products.RestockProduct(restock(tea, 1, f"r{n}")) for n in range(1, 9)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(result, Exception) for result in results] == [True] + [False] * 7
    assert await shop.stock(tea) == (8, 0, 0)


async def test_duplicates_at_the_same_time_are_replayed(shop: Shop) -> None:
    requests = [create_product("c1", 7)] * 20
    replies = await asyncio.gather(*map(shop.products.CreateProduct, requests))
    assert len({reply.product.product_id for reply in replies}) == 1
    assert sum(not reply.replayed for reply in replies) == 1


async def test_stocking_by_the_earlier_release_has_entries(
    shop: Shop, sql: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        earlier_release(patch)
        tea = (await shop.products.CreateProduct(create_product("c1", 7))).product.product_id
        calls = [shop.products.RestockProduct(restock(tea, 2, f"r{n}")) for n in range(20)]
        await asyncio.gather(*calls)
    await shop.products.RestockProduct(restock(tea, 1, "new"))
    entries = [line.split("|") for line in sql(JOURNAL).split()]
    assert [int(stocked) for *_, stocked, _ in entries] == [7, *range(9, 48, 2), 48]
    assert [quantity for _, _, quantity, _, _ in entries] == ["7", *[""] * 20, "1"]
    sql(FORGET_ANSWERS)
    with refused("REQUEST_ID_REUSED"):
        await shop.products.RestockProduct(restock(tea, 2, "r0"))


# -- products that are older than the journal ------------------------------------------------------

OLD, BEFORE_TRIGGER, BEFORE_COPY, DURING_COPY, NEW = (str(uuid.UUID(int=n)) for n in range(1, 6))


def stocked(product_id: str, request_id: str, quantity: int) -> str:
    """SQL: what a replica of the earlier release writes in the transaction of a stocking."""
    method = "CreateProduct" if request_id == "create" else "RestockProduct"
    change = (
        f"INSERT INTO products VALUES ('{product_id}', 'p', 'KRW', 1, {quantity}, 0, 0, 1, now(),"
        " now());"
        if request_id == "create"
        else f"UPDATE products SET stocked = stocked + {quantity}, version = version + 1,"
        f" update_time = now() WHERE product_id = '{product_id}';"
    )
    return (
        f"{change} INSERT INTO answers (method, scope, request_id, digest, state, body)"
        f" SELECT '{method}', '', '{request_id} {product_id}', '', 'ANSWERED', json_build_object("
        "'product_id', product_id, 'stocked', stocked, 'version', version, 'update_time',"
        f" update_time) FROM products WHERE product_id = '{product_id}';"
    )


async def test_each_older_product_gets_an_opening_entry_whatever_happens_meanwhile(
    postgres_server: PostgresServer, older_database: ServiceUrls, until: Callable[[int], Path]
) -> None:
    """The copy also does not wait for a transaction that writes answers."""
    name = name_of(older_database)
    await migrate(older_database.owner, until(3))
    for product_id in (OLD, BEFORE_TRIGGER, BEFORE_COPY, DURING_COPY):
        postgres_server.run_sql(stocked(product_id, "create", 7), database=name)
    postgres_server.run_sql(stocked(BEFORE_TRIGGER, "restock", 2), database=name)
    await migrate(older_database.owner, until(4))
    for script in (stocked(BEFORE_COPY, "restock", 2), stocked(NEW, "create", 7)):
        postgres_server.run_sql(f"BEGIN; {script} COMMIT", database=name)
    writer = await asyncpg.connect(older_database.runtime)
    try:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute(stocked(DURING_COPY, "restock", 2))
        await migrate(older_database.owner, until(5))
        await transaction.commit()
    finally:
        await writer.close()
    for product_id in (OLD, BEFORE_TRIGGER, BEFORE_COPY, DURING_COPY, NEW):
        postgres_server.run_sql(stocked(product_id, "again", 1), database=name)
    journal = postgres_server.run_sql(
        "SELECT right(product_id::text, 1) || ' ' || string_agg(concat_ws(' ', kind, quantity,"
        " stocked_after), ', ' ORDER BY product_version) FROM stock_entries GROUP BY product_id"
        " ORDER BY product_id",
        database=name,
    )
    assert journal.splitlines() == [
        "1 OPENING 7 7, RESTOCKED 8",
        "2 OPENING 9 9, RESTOCKED 10",
        "3 OPENING 0 0, RESTOCKED 9, RESTOCKED 10",
        "4 OPENING 7 7, RESTOCKED 9, RESTOCKED 10",
        "5 CREATED 7 7, RESTOCKED 8",
    ]
    check = next(check for check in audit_of_orders.CHECKS if check.name == "stock journal")
    differences = f"SELECT difference FROM ({check.sql}) AS checked WHERE difference IS NOT NULL"
    assert not postgres_server.run_sql(differences, database=name)
