"""One service's channel, and its methods as things that can be called."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from common.ids import new_id
from common.rpc.channels import open_channel
from common.rpc.service_config import is_idempotent
from tally_client import policy
from tally_client.errors import NoAnswer, TallyError
from tally_client.translate import error_of

Target = str | Sequence[str]
"""``dns:///name:port``, ``host:port``, or several numeric ``ip:port``."""

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

REQUEST_ID: Final = "request_id"


class NotConnected(RuntimeError):  # noqa: N818 - a fact about how the client was made
    """The client was given no address of this service."""


class ClientClosed(RuntimeError):  # noqa: N818 - a fact about the client's life
    """The call was made after the client was closed, and was not sent."""


class Connection:
    """All replicas of one service, in turns. To be made in the running event loop."""

    def __init__(
        self, name: str, target: Target | None, on_repeat: Callable[[TallyError], None] | None
    ) -> None:
        """``on_repeat`` is told what an attempt ended with before the call is sent again.

        Raises ValueError if the target is none.
        """
        self.name = name
        self.on_repeat = on_repeat
        self.closed = False
        self._loop = asyncio.get_running_loop()
        addresses = target if target is None or isinstance(target, str) else ",".join(target)
        self._channel = (
            None if addresses is None else open_channel(addresses, config=policy.CHANNEL)
        )

    def channel(self) -> grpc.aio.Channel:
        """Raises NotConnected, ClientClosed, or RuntimeError in a loop that is not the client's."""
        self._in_its_loop()
        if self._channel is None:
            raise NotConnected(f"this client was given no address of the {self.name} service")
        if self.closed:
            raise ClientClosed("this client is closed")
        return self._channel

    async def close(self) -> None:
        """Closes the channel; calls still running on it end with NoAnswer."""
        self._in_its_loop()
        self.closed = True
        if self._channel is not None:
            await self._channel.close()

    def _in_its_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("a client works in the event loop that it was made in")

    def closed_under_a_call(self) -> bool:
        """Whether a call that ended in CancelledError did so because the client was closed.

        Nobody cancelled its task then. To pass the CancelledError on would end that task without
        an error that anything catches; in a gRPC handler, without a status.
        """
        task = asyncio.current_task()
        return self.closed and (task is None or not task.cancelling())


class _Method(Generic[Request, Response]):
    """What unary methods and streams have in common."""

    def __init__(
        self,
        connection: Connection,
        descriptor: MethodDescriptor,
        request: type[Request],
        response: type[Response],
    ) -> None:
        assert descriptor.input_type is request.DESCRIPTOR
        assert descriptor.output_type is response.DESCRIPTOR
        self.path: Final = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
        self.timeout_s: Final = policy.TIMEOUTS_S.get(self.path)
        """The default time limit; None for a stream."""
        self._connection = connection
        self._safe = is_idempotent(descriptor)
        self._named = REQUEST_ID in request.DESCRIPTOR.fields_by_name
        self._request = request
        self._response = response
        self._callable: Any = None

    def _until(self, timeout_s: float | None) -> float | None:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        if limit_s is not None and not math.isfinite(limit_s):
            # gRPC would take it for a time that has passed.
            raise ValueError(f"timeout_s must be a finite number of seconds, not {limit_s}")
        return None if limit_s is None else asyncio.get_running_loop().time() + limit_s

    def _with_request_id(self, request: Request) -> tuple[Request, str]:
        """The request as it is sent, each time alike. The caller's own is left as it is."""
        if not isinstance(request, self._request):
            # On the wire it would pass for a request of the right type with other fields.
            told = f"{self.path} takes {self._request.__name__}, not {type(request).__name__}"
            raise TypeError(told)
        given: str = getattr(request, REQUEST_ID) if self._named else ""
        if given or not self._named:
            return request, given
        made = new_id()
        named = type(request)()
        named.CopyFrom(request)
        setattr(named, REQUEST_ID, made)
        return named, made

    def _error(self, error: grpc.aio.AioRpcError, request_id: str) -> TallyError:
        return error_of(error, method=self.path, request_id=request_id, safe=self._safe)

    def _cut_off(self, request_id: str) -> TallyError:
        return NoAnswer(
            "The client was closed before the answer came.",
            code=grpc.StatusCode.CANCELLED,
            method=self.path,
            request_id=request_id,
            is_idempotent=self._safe,
        )

    async def _pause_or_raise(
        self, error: TallyError, wait_s: float | None, until: float | None
    ) -> None:
        """Returns when the call is to be sent again; raises ``error`` if it is not."""
        if wait_s is None:
            raise error
        if until is not None and asyncio.get_running_loop().time() + wait_s >= until:
            # The refusal tells more than a timeout would.
            raise error
        if self._connection.on_repeat is not None:
            self._connection.on_repeat(error)
        await asyncio.sleep(wait_s)
        if self._connection.closed:
            raise error


class Unary(_Method[Request, Response]):
    """A method with one answer."""

    async def __call__(self, request: Request, *, timeout_s: float | None = None) -> Response:
        """The answer to ``request``.

        An empty request_id is filled in, anew for every call of this method; the same one is sent
        however often the call is repeated, and ``error.request_id`` tells it. ``timeout_s`` is for
        all attempts together; left out, it is the method's default (``self.timeout_s``). Raises
        TallyError; and ValueError, TypeError, NotConnected or ClientClosed for a call that cannot
        be made.
        """
        request, request_id = self._with_request_id(request)
        until = self._until(timeout_s)
        repetitions = 0
        while True:
            try:
                return await self._send(request, until)
            except grpc.aio.AioRpcError as error:
                failure = self._error(error, request_id)
            except asyncio.CancelledError:
                if not self._connection.closed_under_a_call():
                    raise
                raise self._cut_off(request_id) from None
            await self._pause_or_raise(failure, policy.wait_s(failure, repetitions), until)
            repetitions += 1

    async def _send(self, request: Request, until: float | None) -> Response:
        channel = self._connection.channel()
        if self._callable is None:
            self._callable = channel.unary_unary(
                self.path,
                request_serializer=_serialize,
                response_deserializer=self._response.FromString,
            )
        answer: Response = await self._callable(request, timeout=_left_s(until))
        return answer


class Listing(Unary[Request, Response]):
    """A method that lists, page by page."""

    async def pages(
        self, request: Request, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Response, None]:
        """Every page from the one that ``request`` asks for; ``timeout_s`` is for each of them."""
        asked: Any = type(request)()
        asked.CopyFrom(request)
        while True:
            page: Any = await self(asked, timeout_s=timeout_s)
            yield page
            if not page.next_page_token:
                return
            asked.page_token = page.next_page_token


class Watch(_Method[Request, Response]):
    """A method that answers with a stream: the state now, then each change."""

    async def __call__(
        self, request: Request, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Response, None]:
        """Each state, until the service says that nothing moves any more.

        A stream that breaks is taken up again, with another replica if need be: what was seen
        before is not given twice, and of the changes that happened meanwhile the last is given.
        There is no time limit unless ``timeout_s`` is given. Raises as a unary method does, also
        when a stream breaks that had brought nothing since it was taken up.
        """
        request, _ = self._with_request_id(request)
        until = self._until(timeout_s)
        seen: Response | None = None
        refusals = breaks = 0
        while True:
            begun = False
            try:
                async with aclosing(self._states(request, until)) as states:
                    async for state in states:
                        begun = True
                        if state != seen:
                            seen, breaks = state, 0
                            yield state
                return  # noqa: TRY300 - the stream came to its end
            except grpc.aio.AioRpcError as error:
                failure = self._error(error, "")
            except asyncio.CancelledError:
                if not self._connection.closed_under_a_call():
                    raise
                raise self._cut_off("") from None
            # A stream that brought nothing has been repeated by the channel already.
            if begun:
                wait_s, refusals = policy.resume_s(failure, breaks), 0
                breaks += 1
            else:
                wait_s = policy.wait_s(failure, refusals)
                refusals += 1
            if until is None and refusals > policy.UNTIMED_REFUSALS_MAX:
                raise failure
            await self._pause_or_raise(failure, wait_s, until)

    async def _states(
        self, request: Request, until: float | None
    ) -> AsyncGenerator[Response, None]:
        channel = self._connection.channel()
        if self._callable is None:
            self._callable = channel.unary_stream(
                self.path,
                request_serializer=_serialize,
                response_deserializer=self._response.FromString,
            )
        call = self._callable(request, timeout=_left_s(until))
        try:
            async for state in call:
                yield state
        finally:
            # Whoever stops watching is not to be sent more.
            call.cancel()


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _left_s(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - asyncio.get_running_loop().time())
