"""Carts that several tabs change at once: each version has one content, and none comes back.

A change of a cart has no request_id. Each SetCartItem of the load has a quantity of its own, so
that what a cart has tells who wrote it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from tally.order.v1 import order_pb2 as pb
from tests.chaos.calls import call_once
from tests.chaos.history import CartCall, Outcome
from tests.chaos.verdict import violations
from tests.support.orders import Shop, set_item

if TYPE_CHECKING:
    from tests.chaos.load import Traffic

CARTS: Final = tuple(f"tabs-{number}" for number in range(2))
PAUSE_S: Final = 0.2
FINAL: Final = """
SELECT user_id, version, coalesce(quantity, 0) AS quantity
  FROM carts LEFT JOIN cart_items USING (user_id)
 WHERE user_id LIKE 'tabs-%'
"""


async def change_carts(traffic: Traffic, shop: Shop, product_id: str) -> None:
    """One tab: most changes expect the version that any tab has seen last."""
    random, history = traffic.random, traffic.history
    while not traffic.stopping:
        user_id, what = random.choice(CARTS), random.random()
        expected = history.cart_versions.get(user_id) if random.random() < 0.6 else None
        quantity = next(traffic.numbers) if what < 0.75 else 0
        method, request = (
            (shop.carts.GetCart, pb.GetCartRequest(user_id=user_id))
            if what > 0.85
            else _change(shop, user_id, product_id, quantity, expected)
        )
        call = await call_once(method, request, traffic.deadline_s())
        history.add_cart(CartCall.of(user_id, quantity, expected, method, call), call)
        await asyncio.sleep(PAUSE_S)


def _change(
    shop: Shop, user_id: str, product_id: str, quantity: int, expected: int | None
) -> tuple[Any, Any]:
    """The method and request that set this quantity, or empty the cart."""
    if quantity:
        request = set_item(user_id, product_id, quantity, expected_version=expected)
        return shop.carts.SetCartItem, request
    return shop.carts.ClearCart, pb.ClearCartRequest(user_id=user_id, expected_version=expected)


def wrong_carts(calls: Iterable[CartCall], final: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """Replies about carts that contradict each other, or the cart as it is at the end.

    ``final``: version and quantity, by user.
    """
    by_user: defaultdict[str, list[CartCall]] = defaultdict(list)
    for call in calls:
        by_user[call.user_id].append(call)
    for user_id, made in by_user.items():
        for what in _wrong(made, *final.get(user_id, (0, 0))):
            yield f"cart {user_id}: {what}"


def _wrong(calls: list[CartCall], version: int, quantity: int) -> Iterator[str]:
    contents: defaultdict[int, set[int]] = defaultdict(set, {version: {quantity}})
    for call in calls:
        if call.outcome is Outcome.OK:
            contents[call.version].add(call.quantity)
            yield from _of_reply(call, version)
        elif call.reason == "CART_CHANGED" and call.expected == version:
            yield f"{call.method} is CART_CHANGED at {call.expected}, the version at the end"
    for number, found in contents.items():
        if len(found) > 1:
            yield f"version {number} has {sorted(found)}"
    made = sum(call.changes and call.outcome is not Outcome.REFUSED for call in calls)
    if version > made:
        yield f"version {version} after {made} changes"
    yield from violations(
        (call.start_s, call.end_s, _position(call), str(call))
        for call in calls
        if call.outcome is Outcome.OK
    )


def _of_reply(call: CartCall, version: int) -> Iterator[str]:
    if call.version > version:
        yield f"{call}, and it is at {version}"
    if call.changes and call.quantity != call.asked:
        yield f"{call}"
    if call.changes and call.expected is not None:
        # Emptying an empty cart changes nothing.
        allowed = {call.expected + 1} | ({call.expected} if not call.asked else set())
        if call.version not in allowed:
            yield f"{call}"


def _position(call: CartCall) -> int:
    """A SetCartItem is at twice its version; what may have changed nothing is after it."""
    return 2 * call.version + (not call.asked)
