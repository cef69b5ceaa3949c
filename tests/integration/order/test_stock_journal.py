"""The stock journal: what was ever stocked of each product, and by which request, for good."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import AsyncMock

import asyncpg
import pytest

from common.db.migrations import migrate
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_roles import ServiceUrls
from order_service.store import product as product_store
from tests.support.databases import ROOT, name_of
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
    monkeypatch.setattr(product_store, "add_entries", AsyncMock())


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


async def test_runtime_role_can_only_add_entries(order_database: ServiceUrls) -> None:
    connection = await asyncpg.connect(order_database.runtime)
    try:
        for statement in ("UPDATE stock_entries SET quantity = 1", "DELETE FROM stock_entries"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


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


@pytest.fixture
def earlier_versions(tmp_path: Path) -> Path:
    """The revisions before the journal."""
    for file in (ROOT / "order_service" / "migrations").glob("000[123]_*.py"):
        shutil.copy(file, tmp_path)
    return tmp_path


async def test_products_before_the_journal_get_an_opening_entry(
    postgres_server: PostgresServer, earlier_versions: Path
) -> None:
    postgres_server.provision("order")
    urls = postgres_server.create_database("test_opening", service="order")
    try:
        await migrate(urls.owner, earlier_versions)
        run = postgres_server.run_sql
        run(
            "INSERT INTO products SELECT gen_random_uuid(), 'p', 'KRW', 1, n, 0, 0, n, now(), now()"
            " FROM generate_series(1, 3) AS n",
            database=name_of(urls),
        )
        await migrate(urls.owner, ROOT / "order_service" / "migrations")
        assert run(
            "SELECT kind, quantity, stocked_after, product_version FROM stock_entries"
            " JOIN products USING (product_id) ORDER BY stocked",
            database=name_of(urls),
        ).split() == [f"OPENING|{n}|{n}|{n}" for n in (1, 2, 3)]
    finally:
        postgres_server.drop_database("test_opening")
