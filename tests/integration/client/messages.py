"""The two methods that the client's tests call: DeductBalance, and SetCartItem."""

from __future__ import annotations

from typing import Final

from tally.balance.v1 import balance_pb2
from tally.order.v1 import order_pb2
from tally_client import Tally
from tests.support.balances import won

LIMIT_S: Final = 30.0
"""A time limit that a test never reaches."""
DEDUCTED: Final = balance_pb2.DeductBalanceResponse(replayed=True)
ITEM_SET: Final = order_pb2.SetCartItemResponse()


def deduct(request_id: str = "") -> balance_pb2.DeductBalanceRequest:
    return balance_pb2.DeductBalanceRequest(user_id="ada", amount=won(1), request_id=request_id)


def set_item() -> order_pb2.SetCartItemRequest:
    return order_pb2.SetCartItemRequest(user_id="ada", product_id="mug", quantity=1)


async def call(tally: Tally, *, idempotent: bool) -> None:
    """Call DeductBalance, which is idempotent, or SetCartItem, which is not."""
    if idempotent:
        await tally.balance.deduct_balance(deduct(), timeout_s=LIMIT_S)
    else:
        await tally.cart.set_cart_item(set_item(), timeout_s=LIMIT_S)
