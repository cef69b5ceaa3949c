"""Other services, each by one channel (``common.rpc.channels``) for the life of the process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc

from common import deadlines, tracing
from common.rpc import retry
from common.rpc.handlers import LEAST_S
from common.rpc.status import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

Stub = TypeVar("Stub")
Request = TypeVar("Request")
Response = TypeVar("Response")


class ServiceClient(Generic[Stub]):
    """Another service: its stub, with deadlines and traces carried on and errors as refusals.

    >>> async with Peer(open_channel(addresses), BalanceServiceStub) as balance:
    ...     await balance.call(balance.stub.DeductBalance, request, limit_s=2.0)
    """

    def __init__(self, channel: grpc.aio.Channel, stub_type: Callable[[Any], Stub]) -> None:
        self.stub = stub_type(tracing.calling(channel))
        self._channel = channel

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
        """Closes the channel; calls still running on it are cancelled."""
        await self._channel.close()

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        limit_s: float,
        repeat: bool = True,
        attempts_max: int = retry.ATTEMPTS_MAX,
    ) -> Response:
        """The response to one unary call, each attempt within ``limit_s`` and the deadline.

        With ``repeat``, a refusal that may pass is met with further attempts; right for reads and
        for mutations with a request_id. Raises RemoteRefusal with what the peer said, or with an
        empty reason if it said nothing; DeadlineTooShort if no time is left to begin.
        """

        async def attempt() -> Response:
            timeout_s = deadlines.timeout_for(limit_s, least_s=LEAST_S)
            try:
                return await method(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None

        if not repeat:
            return await attempt()
        return await retry.call_with_retries(
            type(request).__name__, attempt, attempts_max=attempts_max
        )
