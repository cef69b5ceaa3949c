"""CartService as a client sees it."""

from __future__ import annotations

import asyncio

from tally.order.v1 import order_pb2 as pb
from tests.support.orders import UNKNOWN_ID, Shop, create_product, set_item
from tests.support.refusals import refused


async def test_a_cart_that_was_never_touched_is_empty(order: Shop) -> None:
    cart = (await order.carts.GetCart(pb.GetCartRequest(user_id="ann"))).cart
    assert cart == pb.Cart(user_id="ann")
    cleared = await order.carts.ClearCart(pb.ClearCartRequest(user_id="ann", expected_version=0))
    assert cleared.cart == cart


async def test_lines_are_set_changed_and_taken_out(order: Shop) -> None:
    tea, cup = sorted([await order.product(1), await order.product(1)])
    await order.carts.SetCartItem(set_item("ann", tea, 2))
    cart = (await order.carts.SetCartItem(set_item("ann", cup, 1, expected_version=1))).cart
    assert [(item.product_id, item.quantity) for item in cart.items] == [(tea, 2), (cup, 1)]
    assert cart.version == 2
    cart = (await order.carts.SetCartItem(set_item("ann", tea, 0, expected_version=2))).cart
    assert [(item.product_id, item.quantity) for item in cart.items] == [(cup, 1)]
    cart = (await order.carts.ClearCart(pb.ClearCartRequest(user_id="ann"))).cart
    assert (list(cart.items), cart.version) == ([], 4)
    assert (await order.carts.GetCart(pb.GetCartRequest(user_id="ann"))).cart == cart


async def test_setting_what_is_set_changes_nothing(order: Shop) -> None:
    tea = await order.product(1)
    first = (await order.carts.SetCartItem(set_item("ann", tea, 2))).cart
    assert (await order.carts.SetCartItem(set_item("ann", tea, 2))).cart == first
    assert (await order.carts.SetCartItem(set_item("bob", tea, 0))).cart == pb.Cart(user_id="bob")


async def test_a_change_made_from_another_version_is_shown(order: Shop) -> None:
    tea, cup = await order.product(1), await order.product(1)
    with refused("CART_CHANGED"):
        await order.carts.SetCartItem(set_item("ann", tea, 1, expected_version=1))
    await order.carts.SetCartItem(set_item("ann", tea, 1, expected_version=0))
    with refused("CART_CHANGED") as told:
        await order.carts.SetCartItem(set_item("ann", cup, 1, expected_version=0))
    assert told.refusal is not None
    assert told.refusal.retry_after_s is None
    with refused("CART_CHANGED"):
        await order.carts.ClearCart(pb.ClearCartRequest(user_id="ann", expected_version=0))
    cart = (await order.carts.GetCart(pb.GetCartRequest(user_id="ann"))).cart
    assert [(item.product_id, item.quantity) for item in cart.items] == [(tea, 1)]


async def test_a_cart_holds_as_many_products_as_an_order(order: Shop) -> None:
    names = [create_product(f"p{number}", 1) for number in range(101)]
    made = await asyncio.gather(*(order.products.CreateProduct(name) for name in names))
    *fitting, surplus = [response.product.product_id for response in made]
    await asyncio.gather(*(order.carts.SetCartItem(set_item("ann", id_, 1)) for id_ in fitting))
    with refused("INVALID_FIELD", field="product_id"):
        await order.carts.SetCartItem(set_item("ann", surplus, 1))
    await order.carts.SetCartItem(set_item("ann", fitting[0], 5))
    cart = (await order.carts.SetCartItem(set_item("ann", fitting[1], 0))).cart
    assert (len(cart.items), cart.version) == (99, 102)
    await order.carts.SetCartItem(set_item("ann", surplus, 1))


async def test_a_product_that_does_not_exist_is_not_found(order: Shop) -> None:
    for product_id in (UNKNOWN_ID, "tea", "\u0000", "x" * 2_000):
        with refused("PRODUCT_NOT_FOUND"):
            await order.carts.SetCartItem(set_item("ann", product_id, 1))
