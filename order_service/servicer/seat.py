"""SeatService over gRPC. No rules, no SQL, no ``try``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from common.paging import Page
from common.rpc.reasons import refuses
from order_service.errors import ProductNotFound
from order_service.model.seat import MapSeat, Seat, SeatState
from order_service.use_cases.seat import Seats
from order_service.use_cases.seat_watch import SeatWatches
from tally.order.v1 import order_pb2 as pb
from tally.order.v1 import order_pb2_grpc

_STATES: Final = {state: pb.Seat.State.Value(f"STATE_{state}") for state in SeatState}
_STATES_BY_NUMBER: Final = {number: state for state, number in _STATES.items()}


class SeatServicer(order_pb2_grpc.SeatServiceServicer):
    def __init__(self, seats: Seats, watches: SeatWatches) -> None:
        self._seats = seats
        self._watches = watches

    @refuses(ProductNotFound)
    async def ListSeats(self, request: pb.ListSeatsRequest, context: Any) -> pb.ListSeatsResponse:
        state = _STATES_BY_NUMBER[request.state] if request.HasField("state") else None
        filters = ("seats", request.product_id, state.value if state else "")
        page = Page.of(request.page_size, request.page_token, filters=filters, key=(str,))
        found = await self._seats.list_seats(request.product_id, state, page)
        seats, next_page_token = found.messages(_seat)
        return pb.ListSeatsResponse(seats=seats, next_page_token=next_page_token)

    @refuses(ProductNotFound)
    async def WatchSeats(
        self, request: pb.WatchSeatsRequest, context: Any
    ) -> AsyncGenerator[pb.WatchSeatsResponse]:
        after = request.after_version if request.HasField("after_version") else None
        async with aclosing(self._watches.follow(request.product_id, after)) as changes:
            async for seats, version in changes:
                yield pb.WatchSeatsResponse(seats=map(_seat, seats), version=version or 0)


def _seat(seat: Seat | MapSeat) -> pb.Seat:
    return pb.Seat(label=seat.label, state=_STATES[seat.state], version=seat.version)
