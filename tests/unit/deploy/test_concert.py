"""The demo's concert ends, also if its map does not follow the sale."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import Mock

import pytest
from rich.console import Console

from deploy.local.demo import seats
from deploy.local.demo.output import Output
from tally.order.v1 import order_pb2
from tally_client import SeatTaken, TallyError

Message = order_pb2.WatchSeatsResponse
WHOLE = Message(
    seats=[order_pb2.Seat(label=label, state=order_pb2.Seat.STATE_FREE) for label in seats.LABELS],
    version=2,
)


class Services:
    """A client whose orders come too late, and whose watch of seats sends ``maps``, then ends."""

    def __init__(self, maps: list[Message], end: Exception | None) -> None:
        self.tally = Mock()
        self.tally.seat.watch_seats = self._watch
        self._maps = maps
        self._end = end

    async def _watch(self, _request: object) -> AsyncIterator[Message]:
        for one in self._maps:
            yield one
        if self._end is not None:
            raise self._end
        await asyncio.Event().wait()

    async def call(self, _method: object, request: object) -> Any:
        if isinstance(request, order_pb2.CreateOrderRequest):
            raise SeatTaken
        product = order_pb2.Product(product_id="concert")
        return order_pb2.CreateProductResponse(product=product)


@pytest.mark.parametrize(
    ("maps", "end", "reported"),
    [
        ([], TallyError("refused"), "TallyError('UNKNOWN: refused')"),
        ([WHOLE], TallyError("refused"), "TallyError('UNKNOWN: refused')"),
        ([WHOLE], None, "not sold out within 0.2 s"),
        ([], None, "not sold out within 0.2 s"),
    ],
    ids=["no-map", "fails-later", "stays-behind", "no-news"],
)
async def test_a_map_that_does_not_follow_ends_the_sale(
    monkeypatch: pytest.MonkeyPatch, maps: list[Message], end: Exception | None, reported: str
) -> None:
    monkeypatch.setattr(seats, "SALE_S", 0.2)
    printed = io.StringIO()
    client: Any = Services(maps, end)
    concert = await seats.sell_out(client, 1, Output(Console(file=printed)))
    assert f"broken off: {reported}" in printed.getvalue()
    assert not concert.sold
    assert len(asyncio.all_tasks()) == 1, "no fan goes on"
