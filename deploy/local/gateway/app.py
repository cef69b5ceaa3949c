"""The HTTP side: authentication, latency, concurrent calls of a key, and lost responses.

Below ``/_simulator`` is what no merchant has: the record, and what people do elsewhere.

- ``GET charges``: every payment key that a call has named;
- ``POST payments/KEY/cancel``: a refund in the gateway's dashboard, with a cancel call's body;
- ``POST payments/KEY/deposit``: the customer pays into the virtual account.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deploy.local.gateway.ledger import Ledger
from deploy.local.gateway.rules import Behaviour, behaviour_of
from deploy.local.gateway.wire import BadRequestError, Reply, error, read_cancel, read_confirm

BODY_BYTES_MAX: Final = 64 * 1024
IDEMPOTENCY_KEY_CHARACTERS_MAX: Final = 300

HOLD_S_MAX: Final = 600.0
"""How long a call without a response is kept open: longer than any client waits."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a call takes, in milliseconds: random within the range, plus more for ``slow_``."""

    low_ms: int
    high_ms: int
    slow_ms: int

    def half_s(self) -> float:
        """A random half of a call's latency, in seconds."""
        return random.uniform(self.low_ms, self.high_ms) / 2000  # noqa: S311 - no secret


@dataclass(slots=True)
class Simulator:
    """The endpoints, on one ledger."""

    ledger: Ledger
    secret_key: str
    latency: Latency
    stopping: asyncio.Event
    in_flight: set[tuple[str, str]] = field(default_factory=set)

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/payments/confirm", self._guarded(self._confirm), methods=["POST"]),
                Route("/v1/payments/{key}/cancel", self._guarded(self._cancel), methods=["POST"]),
                Route("/v1/payments/{key}", self._guarded(self._find), methods=["GET"]),
                Route("/_simulator/charges", self._guarded(self._charges), methods=["GET"]),
                Route(
                    "/_simulator/payments/{key}/cancel",
                    self._guarded(self._dashboard_cancel),
                    methods=["POST"],
                ),
                Route(
                    "/_simulator/payments/{key}/deposit",
                    self._guarded(self._deposit),
                    methods=["POST"],
                ),
            ]
        )

    async def _confirm(self, request: Request) -> Response:
        confirm = read_confirm(await _body(request))
        key = _idempotency_key(request)
        behaviour = behaviour_of(confirm.payment_key)
        with self._in_flight(request.url.path, key) as first:
            if not first:
                return _response(self.ledger.reject_concurrent("confirm", confirm.payment_key, key))
            # The record is written in the middle of the call: a kill may come before or after it.
            await asyncio.sleep(self.latency.half_s())
            reply = self.ledger.confirm(confirm, key)
            await asyncio.sleep(self.latency.half_s())
            if behaviour is Behaviour.SLOW and reply.fresh:
                await asyncio.sleep(self.latency.slow_ms / 1000)
        if reply.fresh and behaviour is Behaviour.ERROR_AFTER_CHARGE:
            reply = error("FAILED_PAYMENT_INTERNAL_SYSTEM_PROCESSING")
        if reply.fresh and behaviour is Behaviour.TIMEOUT_AFTER_CHARGE:
            return await self._no_response(request)
        return _response(reply)

    async def _cancel(self, request: Request) -> Response:
        payment_key = request.path_params["key"]
        cancel = read_cancel(await _body(request))
        key = _idempotency_key(request)
        with self._in_flight(request.url.path, key) as first:
            if not first:
                return _response(self.ledger.reject_concurrent("cancel", payment_key, key))
            await asyncio.sleep(self.latency.half_s())
            reply = self.ledger.cancel(payment_key, cancel, key)
            await asyncio.sleep(self.latency.half_s())
        return _response(reply)

    async def _find(self, request: Request) -> Response:
        await asyncio.sleep(self.latency.half_s())
        reply = self.ledger.find(request.path_params["key"])
        await asyncio.sleep(self.latency.half_s())
        return _response(reply)

    async def _dashboard_cancel(self, request: Request) -> Response:
        cancel = read_cancel(await _body(request))
        return _response(self.ledger.dashboard_cancel(request.path_params["key"], cancel))

    async def _deposit(self, request: Request) -> Response:
        return _response(self.ledger.deposit(request.path_params["key"]))

    async def _charges(self, _: Request) -> Response:
        """Every payment key that a call has named."""
        return JSONResponse(self.ledger.records())

    async def _no_response(self, request: Request) -> Response:
        """Hold the call until its client disconnects. If the simulator stops first, it gets 504."""
        gone = asyncio.create_task(_disconnected(request))
        stopping = asyncio.create_task(self.stopping.wait())
        await asyncio.wait(
            {gone, stopping}, timeout=HOLD_S_MAX, return_when=asyncio.FIRST_COMPLETED
        )
        gone.cancel()
        stopping.cancel()
        return Response(status_code=504)

    @contextmanager
    def _in_flight(self, path: str, idempotency_key: str | None) -> Iterator[bool]:
        """Whether no other call of the idempotency key is in progress."""
        mark = (path, idempotency_key or "")
        first = mark not in self.in_flight
        if idempotency_key is None or not first:
            yield first or idempotency_key is None
            return
        self.in_flight.add(mark)
        try:
            yield True
        finally:
            self.in_flight.discard(mark)

    def _guarded(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        expected = "Basic " + base64.b64encode(f"{self.secret_key}:".encode()).decode()

        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), expected.encode()):
                return _response(error("UNAUTHORIZED_KEY"))
            if len(_idempotency_key(request) or "") > IDEMPOTENCY_KEY_CHARACTERS_MAX:
                return _response(error("INVALID_IDEMPOTENCY_KEY"))
            try:
                return await endpoint(request)
            except BadRequestError:
                return _response(error("INVALID_REQUEST"))

        return guarded


def _idempotency_key(request: Request) -> str | None:
    return request.headers.get("idempotency-key")


async def _body(request: Request) -> bytes:
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > BODY_BYTES_MAX:
            raise BadRequestError
    return bytes(received)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(reply: Reply) -> Response:
    return JSONResponse(reply.body, status_code=reply.status)
