"""CartService over gRPC. No rules, no SQL, no ``try``."""

from __future__ import annotations

from typing import Any

from common.rpc.convert import time_to
from common.rpc.reasons import refuses
from order_service.errors import CartChanged, ProductNotFound
from order_service.model.cart import Cart, ClearCart, SetCartItem
from order_service.use_cases.cart import Carts
from tally.order.v1 import order_pb2 as pb
from tally.order.v1 import order_pb2_grpc


class CartServicer(order_pb2_grpc.CartServiceServicer):
    def __init__(self, carts: Carts) -> None:
        self._carts = carts

    @refuses()
    async def GetCart(self, request: pb.GetCartRequest, context: Any) -> pb.GetCartResponse:
        return pb.GetCartResponse(cart=_cart(await self._carts.get_cart(request.user_id)))

    @refuses(ProductNotFound, CartChanged)
    async def SetCartItem(
        self, request: pb.SetCartItemRequest, context: Any
    ) -> pb.SetCartItemResponse:
        cart = await self._carts.set_item(
            SetCartItem(
                request.user_id, request.product_id, request.quantity, _expected_version(request)
            )
        )
        return pb.SetCartItemResponse(cart=_cart(cart))

    @refuses(CartChanged)
    async def ClearCart(self, request: pb.ClearCartRequest, context: Any) -> pb.ClearCartResponse:
        cart = await self._carts.clear(ClearCart(request.user_id, _expected_version(request)))
        return pb.ClearCartResponse(cart=_cart(cart))


def _expected_version(request: pb.SetCartItemRequest | pb.ClearCartRequest) -> int | None:
    return request.expected_version if request.HasField("expected_version") else None


def _cart(cart: Cart) -> pb.Cart:
    return pb.Cart(
        user_id=cart.user_id,
        items=[
            pb.CartItem(product_id=line.product_id, quantity=line.quantity) for line in cart.lines
        ],
        version=cart.version,
        update_time=None if cart.update_time is None else time_to(cart.update_time),
    )
