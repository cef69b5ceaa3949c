"""ProductService as a client sees it."""

from __future__ import annotations

from tally.order.v1 import order_pb2 as pb
from tests.support.orders import UNKNOWN_ID, Shop, create_product, restock
from tests.support.refusals import refused


async def test_a_product_begins_with_all_its_stock_free(order: Shop) -> None:
    response = await order.products.CreateProduct(create_product("c1", 7, name="Tea", price=0))
    product = response.product
    assert (product.name, product.price.amount_minor) == ("Tea", 0)
    assert (product.stock, product.reserved, product.sold, product.version) == (7, 0, 0, 1)
    again = await order.products.CreateProduct(create_product("c1", 7, name="Tea", price=0))
    assert again.replayed
    assert again.product == product
    with refused("REQUEST_ID_REUSED"):
        await order.products.CreateProduct(create_product("c1", 8, name="Tea", price=0))
    got = await order.products.GetProduct(pb.GetProductRequest(product_id=product.product_id))
    assert got.product == product


async def test_a_restock_adds_to_what_is_free(order: Shop) -> None:
    tea = await order.product(2)
    await order.order("ann", {tea: 2})
    response = await order.products.RestockProduct(restock(tea, 5, "r1"))
    assert (response.product.stock, response.product.reserved) == (5, 2)
    assert response.product.version == 3
    again = await order.products.RestockProduct(restock(tea, 5, "r1"))
    assert again.replayed
    assert again.product == response.product
    assert await order.stock(tea) == (5, 2, 0)
    with refused("REQUEST_ID_REUSED"):
        await order.products.RestockProduct(restock(tea, 6, "r1"))


async def test_the_stock_has_a_limit(order: Shop) -> None:
    tea = await order.product(10**12)
    with refused("INVALID_FIELD", field="quantity"):
        await order.products.RestockProduct(restock(tea, 1, "r1"))
    await order.order("ann", {tea: 1})
    await order.products.RestockProduct(restock(tea, 1, "r1"))
    assert await order.stock(tea) == (10**12, 1, 0)


async def test_a_product_that_does_not_exist_is_not_found(order: Shop) -> None:
    for product_id in (UNKNOWN_ID, "tea", "\u0000", "x" * 2_000):
        with refused("PRODUCT_NOT_FOUND"):
            await order.products.GetProduct(pb.GetProductRequest(product_id=product_id))
        with refused("PRODUCT_NOT_FOUND"):
            await order.products.RestockProduct(restock(product_id, 1, "r1"))


async def test_products_are_listed_in_pages_newest_first(order: Shop) -> None:
    made = [await order.product(1) for _ in range(7)]
    found: list[str] = []
    token = ""
    while True:
        page = await order.products.ListProducts(
            pb.ListProductsRequest(page_size=3, page_token=token)
        )
        found += [product.product_id for product in page.products]
        token = page.next_page_token
        if not token:
            break
    assert found == made[::-1]
    with refused("INVALID_PAGE_TOKEN"):
        await order.products.ListProducts(pb.ListProductsRequest(page_token="x"))
