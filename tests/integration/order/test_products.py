"""ProductService as a client sees it."""

from __future__ import annotations

from deploy.local.postgres_roles import ServiceUrls
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, create_product, open_shop, restock
from tests.support.pages import pages_of
from tests.support.refusals import refused


async def test_a_new_product_has_all_its_stock_free(shop: Shop) -> None:
    request = create_product("c1", 7, name="Tea", price=0)
    product = (await shop.products.CreateProduct(request)).product
    assert (product.name, product.price.amount_minor) == ("Tea", 0)
    assert (product.stock, product.reserved, product.sold, product.version) == (7, 0, 0, 1)
    again = await shop.products.CreateProduct(request)
    assert (again.replayed, again.product) == (True, product)
    got = await shop.products.GetProduct(pb.GetProductRequest(product_id=product.product_id))
    assert got.product == product


async def test_a_restock_adds_to_the_free_stock(shop: Shop) -> None:
    tea = await shop.product(2)
    await shop.order("ann", {tea: 2})
    product = (await shop.products.RestockProduct(restock(tea, 5, "r1"))).product
    assert (product.stock, product.reserved, product.version) == (5, 2, 3)
    again = await shop.products.RestockProduct(restock(tea, 5, "r1"))
    assert (again.replayed, again.product) == (True, product)
    assert await shop.stock(tea) == (5, 2, 0)


async def test_the_free_stock_has_a_limit(shop: Shop) -> None:
    tea = await shop.product(10**12)
    with refused("INVALID_FIELD", field="quantity"):
        await shop.products.RestockProduct(restock(tea, 1, "r1"))
    await shop.order("ann", {tea: 1})
    await shop.products.RestockProduct(restock(tea, 1, "r1"))
    assert await shop.stock(tea) == (10**12, 1, 0)


async def test_products_are_listed_in_pages_newest_first(shop: Shop) -> None:
    made = [await shop.product(1) for _ in range(7)]
    pages = await pages_of(shop.products.ListProducts, pb.ListProductsRequest(page_size=3))
    assert [product.product_id for page in pages for product in page] == made[::-1]


async def test_orders_do_not_decide_by_what_the_cache_returns(
    order_database: ServiceUrls, redis_url: str
) -> None:
    url = order_database.runtime
    async with open_shop(1, database_url=url, redis_url=redis_url, product_cache_s=300.0) as shop:
        tea = await shop.product(2)
        listed = pb.ListProductsRequest()

        async def shown() -> list[int]:
            [product] = (await shop.products.ListProducts(listed)).products
            return [(await shop.stock(tea))[0], product.stock]

        assert await shown() == [2, 2]
        await shop.order("ann", {tea: 2})
        assert await shown() == [2, 2], "as read before the order"
        with refused("OUT_OF_STOCK"):
            await shop.order("bob", {tea: 1})
        restocked = (await shop.products.RestockProduct(restock(tea, 5, "r1"))).product
        assert (restocked.stock, restocked.reserved) == (5, 2)
        await shop.order("bob", {tea: 5})
        mug = await shop.product(3)
        assert await shop.stock(mug) == (3, 0, 0), "what was not read before is read"
