"""HTTP exchanges with the payment gateway, each within limits, none with more trust than it needs.

The gateway is not trusted: no redirect is followed, no cookie kept, no compressed or large body
read, and the whole exchange has one time limit, so that a slow trickle ends too.

An exchange first takes one of a bounded number of slots, and only then a connection. So a call that
finds all of them taken is known not to have left, and not to be the gateway's fault; and a call
that is cancelled anywhere gives back its slot, whatever became of its connection.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.tracing import Trace
from pydantic import SecretStr
from yarl import URL

from common import failpoints
from payment_service.gateway.outcomes import NotSent, Unknown
from payment_service.gateway.toss_responses import Response

BODY_BYTES_MAX: Final = 64 * 1024
"""Above any payment object by far, and small enough to hold for every call in flight."""

_IDLE_S_MAX: Final = 2.0
"""Servers close connections that idle for 5 s and more. A call sent at that moment is lost, and
its outcome unknown until the payment is looked up."""

_NEVER_SENT: Final = (
    aiohttp.ClientConnectorError,  # no address, no connection, or no TLS
    aiohttp.ConnectionTimeoutError,  # of the same; not of the reply
    aiohttp.InvalidURL,
)


class ExchangeFailed(Exception):  # noqa: N818 - carries an outcome through the circuit breaker
    """The exchange has no response."""

    def __init__(self, outcome: NotSent | Unknown) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class NoSlot(Exception):  # noqa: N818 - a state, not a fault
    """All slots were taken for as long as a call waits for one."""


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """Times in seconds."""

    connect_timeout_s: float
    timeout_s: float
    slots: int

    @property
    def connect_s(self) -> float:
        """Of the wait for a slot, and of name, TCP and TLS together.

        Both end before the whole exchange does: then it is certain that the call never left.
        """
        return min(self.connect_timeout_s, self.timeout_s / 3)


class Exchanges:
    """Exchanges of JSON with one server. Make and close it inside the event loop."""

    def __init__(self, url: str, secret_key: SecretStr, limits: ExchangeLimits) -> None:
        base = URL(url)
        self._url = str(base).rstrip("/")
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.slots)
        authorization = aiohttp.encode_basic_auth(secret_key.get_secret_value(), "")
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                # The slots are the limit. Idle connections are those of slots that are free again.
                limit=0,
                keepalive_timeout=_IDLE_S_MAX,
                # The system's certificates as they are now, which takes a while to read.
                ssl=ssl.create_default_context() if base.scheme == "https" else True,
                # One look-up at a time in a thread, for all calls: a name server that does not
                # answer takes no more threads, and each call gives up within its own limit.
                resolver=aiohttp.ThreadedResolver(),
            ),
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "Authorization": authorization,
            },
            timeout=aiohttp.ClientTimeout(total=None, connect=limits.connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=BODY_BYTES_MAX,
            # A proxy from the environment would receive the secret key.
            trust_env=False,
            middlewares=(_once,),
        )

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Hold a slot; yields the loop's time at which the exchange in it has to end.

        The wait for the slot is a part of the exchange. Raises NoSlot if none gets free in time.
        """
        until = asyncio.get_running_loop().time() + self._limits.timeout_s
        try:
            async with asyncio.timeout(self._limits.connect_s):
                await self._slots.acquire()
        except TimeoutError:
            raise NoSlot from None
        try:
            yield until
        finally:
            self._slots.release()

    async def send(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None,
        headers: Mapping[str, str],
        until: float,
    ) -> Response:
        """The response to one request, sent at most once. Raises ExchangeFailed.

        ``path`` is percent-encoded; ``operation`` names the failpoints.
        """
        try:
            async with asyncio.timeout_at(until):
                if failpoints.enabled:
                    failpoints.hit(f"gateway.{operation}.before", _never_connected)
                async with self._session.request(
                    method,
                    URL(f"{self._url}{path}", encoded=True),
                    json=body,
                    headers=headers,
                    allow_redirects=False,
                ) as response:
                    if failpoints.enabled:
                        failpoints.hit(f"gateway.{operation}.after", _reply_lost)
                    return await _read(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ExchangeFailed(Unknown(type(error).__name__)) from error

    async def aclose(self) -> None:
        await self._session.close()


class _Connector(aiohttp.TCPConnector):
    """Uses no connection again on which bytes have arrived since its last response.

    They answer nothing that was asked (RFC 9112, 9.2). The library would take them for the response
    to the next request, and an error of the gateway does not name the payment that it is about.
    """

    async def _get(
        self, key: ConnectionKey, traces: list[Trace]
    ) -> aiohttp.connector.Connection | None:
        while (found := await super()._get(key, traces)) is not None:
            if found.protocol is not None and not found.protocol.should_close:
                return found
            found.close()
        return None


async def _once(request: ClientRequest, send: ClientHandlerType) -> ClientResponse:
    """Send a request once, and tell errors before it from those after it.

    The library repeats a GET whose connection was lost, which neither the circuit breaker nor the
    metrics would see. It does not know this error.
    """
    try:
        return await send(request)
    except _NEVER_SENT as error:
        raise ExchangeFailed(NotSent(type(error).__name__)) from error
    except aiohttp.ClientError as error:
        raise ExchangeFailed(Unknown(type(error).__name__)) from error


def _never_connected() -> ExchangeFailed:
    return ExchangeFailed(NotSent("failpoint"))


def _reply_lost() -> ExchangeFailed:
    return ExchangeFailed(Unknown("failpoint"))


async def _read(received: ClientResponse) -> Response:
    """Read a JSON object of bounded size. Raises ExchangeFailed for all else, and for a 5xx."""
    status = received.status
    content_type = received.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" or "content-encoding" in received.headers:
        raise _unknown(status, ", not in plain JSON")
    content = bytearray()
    async for chunk in received.content.iter_any():
        content += chunk
        if len(content) > BODY_BYTES_MAX:
            raise _unknown(status, " with too large a body")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _unknown(status, " with broken JSON") from error
    if not isinstance(body, dict):
        raise _unknown(status, " with JSON that is not an object")
    response = Response(status, body)
    if status >= 500:
        raise _unknown(status, f" {response.error_code or ''}".rstrip())
    return response


def _unknown(status: int, problem: str) -> ExchangeFailed:
    return ExchangeFailed(Unknown(f"{status}{problem}", http_status=status))
