"""CartService as a client sees it."""

from __future__ import annotations

import asyncio

import pytest

from deploy.local.postgres_roles import ServiceUrls
from order_service.model.cart import Cart
from order_service.use_cases.cart import Carts
from tally.order.v1 import order_pb2 as pb
from tests.support.orders import Shop, create_product, open_shop, set_item
from tests.support.refusals import refused


def lines(cart: pb.Cart) -> list[tuple[str, int]]:
    return [(item.product_id, item.quantity) for item in cart.items]


async def test_a_cart_that_was_never_changed_is_empty(shop: Shop) -> None:
    cart = await shop.cart("ann")
    assert cart == pb.Cart(user_id="ann")
    cleared = await shop.carts.ClearCart(pb.ClearCartRequest(user_id="ann", expected_version=0))
    assert cleared.cart == cart


async def test_lines_are_set_changed_and_removed(shop: Shop) -> None:
    tea, cup = sorted([await shop.product(1), await shop.product(1)])
    await shop.carts.SetCartItem(set_item("ann", tea, 2))
    cart = (await shop.carts.SetCartItem(set_item("ann", cup, 1, expected_version=1))).cart
    assert (lines(cart), cart.version) == ([(tea, 2), (cup, 1)], 2)
    cart = (await shop.carts.SetCartItem(set_item("ann", tea, 0, expected_version=2))).cart
    assert lines(cart) == [(cup, 1)]
    cart = (await shop.carts.ClearCart(pb.ClearCartRequest(user_id="ann"))).cart
    assert (lines(cart), cart.version) == ([], 4)
    assert await shop.cart("ann") == cart


async def test_setting_the_same_value_changes_nothing(shop: Shop) -> None:
    tea = await shop.product(1)
    first = (await shop.carts.SetCartItem(set_item("ann", tea, 2))).cart
    assert (await shop.carts.SetCartItem(set_item("ann", tea, 2))).cart == first
    assert (await shop.carts.SetCartItem(set_item("bob", tea, 0))).cart == pb.Cart(user_id="bob")


@pytest.mark.parametrize("quantity", [0, 2], ids=["cleared", "set"])
async def test_a_reply_has_the_change_though_another_tab_changes_the_cart(
    shop: Shop, order_database: ServiceUrls, monkeypatch: pytest.MonkeyPatch, quantity: int
) -> None:
    """The cart is as asked for at first, and no more when that is confirmed."""
    tea = await shop.product(1)
    await shop.carts.SetCartItem(set_item("ann", tea, quantity))
    clear, change = pb.ClearCartRequest(user_id="ann"), set_item("ann", tea, quantity)
    async with open_shop(1, database_url=order_database.runtime) as other:
        confirm, others = Carts._unchanged, [set_item("ann", tea, 7)]

        async def later(carts: Carts, user_id: str) -> Cart:
            if others:
                await other.carts.SetCartItem(others.pop())
            return await confirm(carts, user_id)

        monkeypatch.setattr(Carts, "_unchanged", later)
        calling = shop.carts.SetCartItem(change) if quantity else shop.carts.ClearCart(clear)
        cart = (await calling).cart
    assert lines(cart) == ([(tea, quantity)] if quantity else [])
    assert not others
    assert await shop.cart("ann") == cart


async def test_a_change_of_another_version_is_refused(shop: Shop) -> None:
    tea, cup = await shop.product(1), await shop.product(1)
    with refused("CART_CHANGED"):
        await shop.carts.SetCartItem(set_item("ann", tea, 1, expected_version=1))
    await shop.carts.SetCartItem(set_item("ann", tea, 1, expected_version=0))
    with refused("CART_CHANGED") as ended:
        await shop.carts.SetCartItem(set_item("ann", cup, 1, expected_version=0))
    assert ended.refusal.retry_after_s is None
    with refused("CART_CHANGED"):
        await shop.carts.ClearCart(pb.ClearCartRequest(user_id="ann", expected_version=0))
    assert lines(await shop.cart("ann")) == [(tea, 1)]


async def test_a_cart_holds_as_many_products_as_an_order(shop: Shop) -> None:
    names = [create_product(f"p{number}", 1) for number in range(101)]
    made = await asyncio.gather(*(shop.products.CreateProduct(name) for name in names))
    *fitting, surplus = [response.product.product_id for response in made]
    await asyncio.gather(*(shop.carts.SetCartItem(set_item("ann", id_, 1)) for id_ in fitting))
    with refused("INVALID_FIELD", field="product_id"):
        await shop.carts.SetCartItem(set_item("ann", surplus, 1))
    await shop.carts.SetCartItem(set_item("ann", fitting[0], 5))
    cart = (await shop.carts.SetCartItem(set_item("ann", fitting[1], 0))).cart
    assert (len(cart.items), cart.version) == (99, 102)
    await shop.carts.SetCartItem(set_item("ann", surplus, 1))
