"""The client of all of Tally's services, or of some."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Self

from tally_client.connection import Connection, Target, Token
from tally_client.errors import TallyError
from tally_client.rpc.certificates import Certificates
from tally_client.services import (
    BalanceService,
    CartService,
    CouponService,
    OrderService,
    PaymentService,
    ProductService,
    SagaService,
    SeatService,
)


class Tally:
    """A client with one channel to each service; an asynchronous context manager.

    Create it in the running event loop, and use it in no other. Any number of tasks may make calls
    at once. A call to a service that was given no address raises NotConnected.
    """

    def __init__(
        self,
        *,
        balance: Target | None = None,
        coupon: Target | None = None,
        order: Target | None = None,
        payment: Target | None = None,
        token: Token | None = None,
        certificates: Certificates | None = None,
        on_repeat: Callable[[TallyError], None] | None = None,
    ) -> None:
        """Each address is ``dns:///name:port``, ``host:port``, or a list of numeric ``ip:port``.

        ``token``: who calls, where the services ask for it. A callable is asked before each
        attempt: it returns a token that it has at hand.

        ``certificates``: for TLS; None: plaintext. A certificate or authority that is replaced in
        its file is used within 10 s, without a failed call.

        ``on_repeat`` is called, for logs and metrics, with an attempt's error each time this
        package sends a call again; retries that the channel makes are not reported.

        Raises ValueError if an address is malformed or the certificates cannot be used, and
        RuntimeError without a running event loop.
        """
        to_balance = Connection("balance", balance, on_repeat, token, certificates)
        to_coupon = Connection("coupon", coupon, on_repeat, token, certificates)
        to_order = Connection("order", order, on_repeat, token, certificates)
        to_payment = Connection("payment", payment, on_repeat, token, certificates)
        self._connections = (to_balance, to_coupon, to_order, to_payment)
        self.balance = BalanceService(to_balance)
        self.coupon = CouponService(to_coupon)
        self.product = ProductService(to_order)
        self.seat = SeatService(to_order)
        self.cart = CartService(to_order)
        self.order = OrderService(to_order)
        self.saga = SagaService(to_order)
        self.payment = PaymentService(to_payment)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all channels: running calls end with NoAnswer, later ones with ClientClosed."""
        async with AsyncExitStack() as exits:
            for connection in self._connections:
                exits.push_async_callback(connection.close)
