"""The services as a client of the public API meets them: all replicas by turns, every call
repeated under its own request_id until it has an answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc

from common import deadlines, retry
from common.clients import Peer, open_channel
from common.errors import Code, Refusal, RemoteRefusal
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.order.v1.order_pb2_grpc import OrderServiceStub, ProductServiceStub, SagaServiceStub
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub

ATTEMPT_S: Final = 15.0
"""Time limit of one attempt; paying with a slow gateway is the longest."""
PATIENCE_S: Final = 60.0
"""After this a call is given up, which fails the demo."""
ATTEMPTS_MAX: Final = 200

Stub = TypeVar("Stub")
Request = TypeVar("Request")
Response = TypeVar("Response")


class Calls:
    """What the client side had to do: how many calls, which were repeated and why."""

    def __init__(self) -> None:
        self.made = 0
        self.repeated: Counter[str] = Counter()
        """By what the attempt before ended with."""
        self.open_at_kill = 0
        self.recovered_s = 0.0
        """From the kill to the last answer of a call that was open then."""
        self._open: set[object] = set()
        self._waited_for: set[object] = set()
        self._killed_at = 0.0

    def note_kill(self) -> None:
        self._waited_for = set(self._open)
        self.open_at_kill = len(self._open)
        self._killed_at = time.monotonic()

    def begin(self) -> object:
        call = object()
        self.made += 1
        self._open.add(call)
        return call

    def end(self, call: object) -> None:
        self._open.discard(call)
        if call in self._waited_for:
            self._waited_for.discard(call)
            self.recovered_s = time.monotonic() - self._killed_at


class Shop:
    """One client of all the services; a context manager."""

    def __init__(self, services: Mapping[str, Sequence[str]]) -> None:
        """``services``: the addresses of each service's replicas."""
        channels = {name: open_channel(",".join(at)) for name, at in services.items()}
        self._channels = channels.values()
        self.balance = Peer(channels["balance"], BalanceServiceStub)
        self.coupon = Peer(channels["coupon"], CouponServiceStub)
        self.payment = Peer(channels["payment"], PaymentServiceStub)
        self.order = Peer(channels["order"], OrderServiceStub)
        self.product = Peer(channels["order"], ProductServiceStub)
        self.saga = Peer(channels["order"], SagaServiceStub)
        self.calls = Calls()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        async with AsyncExitStack() as exits:
            for channel in self._channels:
                exits.push_async_callback(channel.close)

    async def ask(
        self,
        peer: Peer[Stub],
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
    ) -> Response:
        """The answer, however many attempts it takes; all of them send the same request_id.

        Raises RemoteRefusal with what the service said no with.
        """
        failed_with = ""

        async def attempt() -> Response:
            nonlocal failed_with
            if failed_with:
                self.calls.repeated[failed_with] += 1
            try:
                return await peer.call(method, request, limit_s=ATTEMPT_S, repeat=False)
            except Refusal as refusal:
                failed_with = refusal.reason or refusal.code.name
                if refusal.code is Code.DEADLINE_EXCEEDED:
                    # However it was told: the same request_id hears the outcome later.
                    raise RemoteRefusal(refusal.code, "", refusal.message, {}) from None
                raise

        call = self.calls.begin()
        try:
            with deadlines.within(PATIENCE_S):
                return await retry.repeated(
                    type(request).__name__, attempt, attempts_max=ATTEMPTS_MAX
                )
        finally:
            self.calls.end(call)
