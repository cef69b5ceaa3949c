"""The client of all of Tally's services, or of some."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from tally_client.calls import Connection, Target
from tally_client.errors import TallyError
from tally_client.services import (
    BalanceService,
    CartService,
    CouponService,
    OrderService,
    PaymentService,
    ProductService,
    SagaService,
)


class Tally:
    """One channel to each service for the life of the client; an asynchronous context manager.

    To be made in the running event loop, and used in no other. Calls may be made from any number
    of tasks at once. A service that was given no address raises NotConnected when it is called.
    """

    def __init__(
        self,
        *,
        balance: Target | None = None,
        coupon: Target | None = None,
        order: Target | None = None,
        payment: Target | None = None,
        on_repeat: Callable[[TallyError], None] | None = None,
    ) -> None:
        """Each address is ``dns:///name:port``, ``host:port``, or several numeric ``ip:port``.

        ``on_repeat`` is told what an attempt ended with each time a call is sent again from here,
        for logs and metrics; what the channel repeats by itself is not told. Raises ValueError if
        an address is malformed.
        """
        self._connections = tuple(
            Connection(name, target, on_repeat)
            for name, target in (
                ("balance", balance),
                ("coupon", coupon),
                ("order", order),
                ("payment", payment),
            )
        )
        to_balance, to_coupon, to_order, to_payment = self._connections
        self.balance = BalanceService(to_balance)
        self.coupon = CouponService(to_coupon)
        self.product = ProductService(to_order)
        self.cart = CartService(to_order)
        self.order = OrderService(to_order)
        self.saga = SagaService(to_order)
        self.payment = PaymentService(to_payment)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all channels: calls still running end with NoAnswer, later ones, ClientClosed."""
        async with AsyncExitStack() as exits:
            for connection in self._connections:
                exits.push_async_callback(connection.close)
