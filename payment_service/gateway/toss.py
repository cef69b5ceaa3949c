"""Calls to Toss Payments, a payment gateway, over HTTP.

Amounts are sent in minor units: Toss carries KRW, which has no smaller unit. Toss fixes the
currency when the customer opens the payment, so its confirm has no currency field; ``currency`` is
sent for other currencies only, as an extension, and checked in every response.

The gateway is not trusted: no redirect is followed, no cookie kept, no compressed or large body
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
from pydantic import SecretStr

from common import failpoints
from common.breaker import CircuitBreaker, CircuitOpen
from common.money import Money
from payment_service.gateway.outcomes import (
    Cancelled,
    CancelOutcome,
    Charge,
    ConfirmOutcome,
    Declined,
    FindOutcome,
    Mismatch,
    NotFound,
    NotSent,
    Rejected,
    Unknown,
)
from payment_service.gateway.toss_responses import (
    ALREADY_CANCELED,
    ALREADY_PROCESSED,
    Response,
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
its outcome unknown until the payment is looked up."""

_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

_UNADDRESSABLE: Final = frozenset({".", ".."})
"""Valid payment keys that a URL path cannot carry: they could be charged but not looked up."""


@dataclass(frozen=True, slots=True)
class TossOptions:
    """How to reach the gateway; times in seconds."""

    url: str
    secret_key: SecretStr
    connect_timeout_s: float = 2.0
    timeout_s: float = 10.0
    connections_max: int = 100
    breaker_failures: int = 20
    breaker_pause_s: float = 5.0


class _Failed(Exception):  # noqa: N818 - carries an outcome through the circuit breaker
    def __init__(self, outcome: NotSent | Unknown) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class TossGateway:
    """Toss Payments. No call raises for a failure of the gateway or the network.

    Make and close it inside the event loop.
    """

    name = "toss"
    """Stored with each payment."""

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
            # A proxy from the environment would receive the secret key.
            trust_env=False,
            transport=transport,
        )
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # One circuit per operation: failing confirms must not prevent the finds that resolve them.
        self._confirms, self._finds, self._cancels = (
            CircuitBreaker(
                operation, failures_max=options.breaker_failures, open_s=options.breaker_pause_s
            )
            for operation in ("confirm", "find", "cancel")
        )

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
        response = await self._exchange(
            self._confirms, "POST", "/v1/payments/confirm", body, charge.idempotency_key
        )
        if not isinstance(response, Response):
            return response
        if response.error_code != ALREADY_PROCESSED:
            return read_confirm(response, charge)
        found = await self.find(charge)
        match found:
            case NotFound() | NotSent() | Rejected():
                # This call did arrive, so a look-up without a result leaves the outcome open.
                return Unknown("already processed, and the look-up had no result")
            case _:
                return found

    async def find(self, charge: Charge) -> FindOutcome:
        """Look up the state of the charge's payment key, checked against the charge."""
        if charge.payment_key in _UNADDRESSABLE:
            return NotFound()
        response = await self._exchange(self._finds, "GET", _path(charge))
        return read_find(response, charge) if isinstance(response, Response) else response

    async def cancel(
        self, charge: Charge, reason: str, amount: Money | None = None
    ) -> CancelOutcome:
        """Give back all that is left of the money, or ``amount`` of it.

        Safe to repeat with the same charge.
        """
        if charge.payment_key in _UNADDRESSABLE:
            return NotFound()
        body: dict[str, Any] = {"cancelReason": reason[:REASON_CHARACTERS_MAX] or "cancelled"}
        if amount is not None:
            body["cancelAmount"] = amount.amount_minor
        response = await self._exchange(
            self._cancels, "POST", f"{_path(charge)}/cancel", body, charge.idempotency_key
        )
        if not isinstance(response, Response):
            return response
        if response.error_code != ALREADY_CANCELED:
            return read_cancel(response, charge, amount)
        found = await self.find(charge)
        match found:
            case Cancelled() | Declined() | Mismatch():
                return found
            case _:
                return Unknown("already cancelled, and the look-up had no result")

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _exchange(
        self,
        breaker: CircuitBreaker,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Response | NotSent | Unknown:
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        request = self._client.build_request(method, path, json=body, headers=headers)
        try:
            async with breaker.call():
                return await self._send(request, breaker.name)
        except CircuitOpen as circuit:
            return NotSent(str(circuit))
        except _Failed as failed:
            return failed.outcome

    async def _send(self, request: httpx.Request, operation: str) -> Response:
        try:
            async with asyncio.timeout(self._timeout_s):
                if failpoints.enabled:
                    failpoints.hit(f"gateway.{operation}.before", _never_connected)
                response = await self._client.send(request, stream=True)
                try:
                    if failpoints.enabled:
                        failpoints.hit(f"gateway.{operation}.after", _reply_lost)
                    return await _read(response)
                finally:
                    await response.aclose()
        except _NEVER_SENT as error:
            raise _Failed(NotSent(type(error).__name__)) from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise _Failed(Unknown(type(error).__name__)) from error


def _never_connected() -> httpx.ConnectError:
    return httpx.ConnectError("failpoint")


def _reply_lost() -> httpx.ReadError:
    return httpx.ReadError("failpoint")


async def _read(received: httpx.Response) -> Response:
    """Read a JSON object of bounded size. Raises _Failed for anything else, and for a 5xx."""
    status = received.status_code
    content_type = received.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" or "content-encoding" in received.headers:
        raise _Failed(Unknown(f"{status}, not in plain JSON"))
    content = bytearray()
    async for chunk in received.aiter_raw():
        content += chunk
        if len(content) > BODY_BYTES_MAX:
            raise _Failed(Unknown(f"{status} with too large a body"))
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _Failed(Unknown(f"{status} with broken JSON")) from error
    if not isinstance(body, dict):
        raise _Failed(Unknown(f"{status} with JSON that is not an object"))
    response = Response(status, body)
    if status >= 500:
        raise _Failed(Unknown(f"{status} {response.error_code or ''}".rstrip()))
    return response


def _path(charge: Charge) -> str:
    return f"/v1/payments/{quote(charge.payment_key, safe='')}"
