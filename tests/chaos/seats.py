"""Clients that want the same few seats, and give back what they get."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from common.errors import Refusal
from tests.faults.load import Repeat
from tests.support.orders import Shop, cancel, create_product, pay
from tests.support.seats import add_seats, labels, order_seats

BUYERS: Final = 2
PRICE: Final = 1_000
PAUSE_S: Final = 0.1
_LABELS: Final = labels(12)
_numbers = itertools.count()


async def buy_seats(
    shop: Shop, repeat: Repeat, chance: random.Random, *, stopping: Callable[[], bool]
) -> None:
    """Order seats of one show; cancel the order, before or after it is paid."""
    show = ""
    while not stopping():
        with suppress(Refusal):
            show = show or await _open(shop, repeat)
            if show:
                await _buy(shop, repeat, chance, show)
        await asyncio.sleep(PAUSE_S)


async def _open(shop: Shop, repeat: Repeat) -> str:
    """The show, which every buyer opens by the same requests; '' if that is not certain."""
    made = await repeat(shop.products.CreateProduct, create_product("show", 0, price=PRICE))
    if made is None:
        return ""
    product_id = str(made.product.product_id)
    added = await repeat(shop.products.AddSeats, add_seats(product_id, _LABELS, "seats"))
    return "" if added is None else product_id


async def _buy(shop: Shop, repeat: Repeat, chance: random.Random, show: str) -> None:
    number, size = next(_numbers), chance.randint(1, 3)
    first = chance.randint(0, len(_LABELS) - size)
    wanted = _LABELS[first : first + size][:: chance.choice((1, -1))]
    request = order_seats(f"fan-{number}", {show: wanted}, f"seats-{number}")
    made = await repeat(shop.orders.CreateOrder, request)
    if made is None:
        return  # it expires, if it was made
    if chance.random() < 0.3:
        with suppress(Refusal):
            await repeat(shop.orders.PayOrder, pay(made.order, "p", payment_key=f"key_fan{number}"))
    await repeat(shop.orders.CancelOrder, cancel(made.order, "x"))
