"""The Gateway over Toss Payments' HTTP protocol.

Amounts travel in minor units, which for KRW, a currency without any, is what Toss carries. Toss
fixes the currency when the customer opens the payment, so its confirm names none; ``currency`` is
sent for other currencies only, as an extension, and checked in every answer.

The far side is not trusted: no redirect is followed, no cookie kept, no compressed or large body
read, and the whole exchange has one time limit, so that a slow trickle ends too.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final
from urllib.parse import quote

import httpx
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import HALF_OPENED, OpenedState
from pydantic import SecretStr

from payment_service.gateway import (
    Cancelled,
    CancelOutcome,
    Charge,
    ConfirmOutcome,
    Declined,
    FindOutcome,
    Mismatch,
    NotCancellable,
    NotFound,
    NotSent,
    Rejected,
    Unknown,
)
from payment_service.toss_answers import (
    ALREADY_CANCELED,
    ALREADY_PROCESSED,
    Answer,
    error_code,
    read_cancel,
    read_confirm,
    read_find,
)

BODY_BYTES_MAX: Final = 64 * 1024
"""Above any payment object by far, and small enough to hold for every call in flight."""

REASON_CHARACTERS_MAX: Final = 200
"""Toss' limit on a cancel reason."""

_IDLE_S_MAX: Final = 2.0
"""Servers close connections that idle for 5 s and more. A call sent at that moment is lost, and
its outcome unknown until the gateway has been asked."""

_NEVER_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
)

_UNADDRESSABLE: Final = frozenset({".", ".."})
"""Legal payment keys that a URL path cannot carry: they could be charged but never asked for."""


@dataclass(frozen=True, slots=True)
class TossOptions:
    """How to reach the gateway; times in seconds."""

    url: str
    secret_key: SecretStr
    connect_timeout_s: float = 2.0
    timeout_s: float = 10.0
    connections_max: int = 100
    breaker_threshold: int = 20
    breaker_ttl_s: float = 5.0


class _Failed(Exception):  # noqa: N818 - carries an outcome through the breaker, which counts raises
    def __init__(self, outcome: NotSent | Unknown) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class TossGateway:
    """A Gateway that speaks Toss Payments' protocol. Make and close it inside the event loop."""

    name = "toss"

    def __init__(
        self, options: TossOptions, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Prepare the connections; ``transport`` replaces the network."""
        self._timeout_s = options.timeout_s
        # Waiting in the pool, TCP and TLS each end before the whole exchange does: then it is
        # certain that the call never left.
        connect_s = min(options.connect_timeout_s, options.timeout_s / 3)
        self._client = httpx.AsyncClient(
            base_url=options.url,
            auth=httpx.BasicAuth(options.secret_key.get_secret_value(), ""),
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(options.timeout_s, connect=connect_s, pool=connect_s),
            limits=httpx.Limits(
                max_connections=options.connections_max,
                max_keepalive_connections=options.connections_max,
                keepalive_expiry=_IDLE_S_MAX,
            ),
            follow_redirects=False,
            # A proxy from the environment would be handed the secret key.
            trust_env=False,
            transport=transport,
        )
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # One circuit per operation: failing confirms must not stand in the way of the finds that
        # resolve them. A caller that goes away says nothing of the gateway's health.
        self._breakers = AsyncCircuitBreakerFactory(
            default_threshold=options.breaker_threshold,
            default_ttl=options.breaker_ttl_s,
            exclude=[asyncio.CancelledError],
        )
        self._trials: set[str] = set()
        """Circuits that one call is trying: the breaker itself would let everybody through."""

    async def confirm(self, charge: Charge) -> ConfirmOutcome:
        """Take the money. Safe to repeat with the same charge."""
        if charge.payment_key in _UNADDRESSABLE:
            return Declined("INVALID_PAYMENT_KEY")
        body: dict[str, Any] = {
            "paymentKey": charge.payment_key,
            "orderId": charge.order_id,
            "amount": charge.amount.amount_minor,
        }
        if charge.amount.currency_code != "KRW":
            body["currency"] = charge.amount.currency_code
        answer = await self._exchange(
            "confirm", "POST", "/v1/payments/confirm", body, charge.idempotency_key
        )
        if not isinstance(answer, Answer):
            return answer
        if error_code(answer) != ALREADY_PROCESSED:
            return read_confirm(answer, charge)
        found = await self.find(charge)
        match found:
            # This call did arrive, so what the look-up failed to tell stays open.
            case NotFound() | NotSent() | Rejected():
                return Unknown("already processed, and the look-up could not tell how")
            case _:
                return found

    async def find(self, charge: Charge) -> FindOutcome:
        """Tell what became of the charge's payment key, checked against the charge."""
        if charge.payment_key in _UNADDRESSABLE:
            return NotFound()
        answer = await self._exchange("find", "GET", _path(charge))
        return read_find(answer, charge) if isinstance(answer, Answer) else answer

    async def cancel(self, charge: Charge, reason: str) -> CancelOutcome:
        """Give all of the money back. Safe to repeat with the same charge."""
        if charge.payment_key in _UNADDRESSABLE:
            return NotFound()
        answer = await self._exchange(
            "cancel",
            "POST",
            f"{_path(charge)}/cancel",
            {"cancelReason": reason[:REASON_CHARACTERS_MAX] or "cancelled"},
            charge.idempotency_key,
        )
        if not isinstance(answer, Answer):
            return answer
        if error_code(answer) != ALREADY_CANCELED:
            return read_cancel(answer, charge)
        found = await self.find(charge)
        match found:
            case Cancelled() | Mismatch():
                return found
            case Declined(code):
                return NotCancellable(code)
            case _:
                return Unknown("already cancelled, and the look-up could not tell")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _exchange(
        self,
        circuit: str,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Answer | NotSent | Unknown:
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        request = self._client.build_request(method, path, json=body, headers=headers)
        breaker = await self._breakers.get_breaker(circuit)
        context = breaker.context
        if context.state == HALF_OPENED and circuit in self._trials:
            return NotSent("circuit half-open")
        try:
            async with breaker:
                if context.state == HALF_OPENED:
                    return await self._try(circuit, request)
                return await self._send(request)
        except OpenedState as opened:
            # The breaker raises one and the same exception every time: left alone, its traceback
            # would grow by a frame with each call for as long as the circuit is open.
            opened.__traceback__ = None
            return NotSent("circuit open")
        except _Failed as failed:
            return failed.outcome

    async def _try(self, circuit: str, request: httpx.Request) -> Answer:
        """Send the one call whose outcome closes the circuit, or opens it again."""
        self._trials.add(circuit)
        try:
            return await self._send(request)
        finally:
            self._trials.discard(circuit)

    async def _send(self, request: httpx.Request) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.send(request, stream=True)
                try:
                    return await _read(response)
                finally:
                    await response.aclose()
        except _NEVER_SENT as error:
            raise _Failed(NotSent(type(error).__name__)) from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise _Failed(Unknown(type(error).__name__)) from error


async def _read(response: httpx.Response) -> Answer:
    """Read a bounded JSON object, or fail: what cannot be read says nothing of the payment."""
    status = response.status_code
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" or "content-encoding" in response.headers:
        raise _Failed(Unknown(f"answered {status}, not in plain JSON"))
    received = bytearray()
    async for chunk in response.aiter_raw():
        received += chunk
        if len(received) > BODY_BYTES_MAX:
            raise _Failed(Unknown(f"answered {status} with too large a body"))
    try:
        body = json.loads(received)
    except (ValueError, RecursionError) as error:
        raise _Failed(Unknown(f"answered {status} with broken JSON")) from error
    if not isinstance(body, dict):
        raise _Failed(Unknown(f"answered {status} with JSON of another form"))
    answer = Answer(status, body)
    if status >= 500:
        raise _Failed(Unknown(f"answered {status} {error_code(answer) or ''}".rstrip()))
    return answer


def _path(charge: Charge) -> str:
    return f"/v1/payments/{quote(charge.payment_key, safe='')}"
