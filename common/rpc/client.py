"""The client of another service, on one channel for the life of the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, Self, TypeVar

import grpc
import structlog

from common import deadlines, failpoints, tracing
from common.errors import Code, RemoteRefusal
from common.identity.service_token import ServiceToken
from common.rpc import retry
from common.rpc.handlers import LEAST_TIME_S
from common.rpc.pauses import CALLER
from common.rpc.status import from_rpc_error

_log = structlog.stdlib.get_logger()

Stub = TypeVar("Stub")
Request = TypeVar("Request")
Response = TypeVar("Response")


_OF_IDENTITY: Final = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED})
_OF_TLS: Final = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification", "WRONG_VERSION_NUMBER")
"""What gRPC says of a connection whose certificate is of another authority, or for another name,
or that is plaintext."""


class ServiceClient(Generic[Stub]):
    """A stub whose calls keep the running call's deadline and trace, and raise refusals.

    Its calls are not paused (``common.rpc.pauses``).

    >>> async with ServiceClient(open_channel(addresses), BalanceServiceStub) as balance:
    ...     await balance.call(balance.stub.DeductBalance, request, limit_s=2.0)
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        stub_type: Callable[[grpc.aio.Channel], Stub],
        token: ServiceToken | None = None,
    ) -> None:
        """``token``: what calls send to identify this service; None if identity is off."""
        self.stub = stub_type(tracing.calling(channel))
        self._channel = channel
        self._token = token
        self._token_problem = ""
        self._tls_problem = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close the channel. Running calls are cancelled."""
        await self._channel.close()

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        limit_s: float,
        attempts_max: int = retry.ATTEMPTS_MAX,
    ) -> Response:
        """The response to one unary call; each attempt has ``limit_s``, or less to the deadline.

        Retryable refusals are retried, up to ``attempts_max`` attempts in all; use 1 for a call
        that must not be repeated. Raises RemoteRefusal with what the service replied, or with an
        empty reason if it did not reply, and DeadlineTooShort if no time is left to begin.
        """

        async def attempt() -> Response:
            timeout_s = deadlines.timeout_for(limit_s, least_s=LEAST_TIME_S)
            try:
                if failpoints.enabled:
                    _hit(request, "before")
                metadata = CALLER if self._token is None else (*CALLER, *self._token.metadata)
                response = await method(request, timeout=timeout_s, metadata=metadata)
                if failpoints.enabled:
                    _hit(request, "after")
            except grpc.aio.AioRpcError as error:
                raise self._refusal_of(error, type(request).__name__) from None
            return _readable(response)

        return await retry.call_with_retries(
            type(request).__name__, attempt, attempts_max=attempts_max
        )

    def _refusal_of(self, error: grpc.aio.AioRpcError, operation: str) -> RemoteRefusal:
        """The refusal that the service replied with.

        If the service refuses this one's token, nobody who calls this one can do anything about
        it: to them the service is away. The log has the cause.
        """
        refusal = from_rpc_error(error)
        self._note_tls(error.details() or "", operation)
        if refusal.code not in _OF_IDENTITY:
            self._token_problem = ""
            return refusal
        if refusal.reason != self._token_problem:
            _log.error("service_token_refused", operation=operation, reason=refusal.message)
        self._token_problem = refusal.reason
        return RemoteRefusal(Code.UNAVAILABLE, "", "refuses the token of this service", {})

    def _note_tls(self, text: str, operation: str) -> None:
        """Log that the connection failed because of a certificate, when that begins.

        To the caller the service is away. If the other side refuses this one's certificate, the
        connection is only closed, and the other's log has the cause.
        """
        problem = next((words for words in _OF_TLS if words in text), "")
        if problem and problem != self._tls_problem:
            _log.error("peer_not_trusted", operation=operation, reason=text)
        self._tls_problem = problem


def _readable(response: Response | None) -> Response:
    """The response. Raises RemoteRefusal if its bytes are none: gRPC logs that and returns None."""
    if response is None:
        raise RemoteRefusal(Code.INTERNAL, "", "the response cannot be read", {})
    return response


def _hit(request: object, when: str) -> None:
    method = type(request).__name__.removesuffix("Request")
    failpoints.hit(f"call.{method}.{when}", _connection_lost)


def _connection_lost() -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "connection lost")
