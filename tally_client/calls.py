"""The methods of a service as callable objects: deadlines, request_ids, retries and resumption."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from tally_client import policy
from tally_client.connection import Connection
from tally_client.errors import NoAnswer, TallyError
from tally_client.request_ids import new_request_id
from tally_client.rpc.service_config import is_idempotent
from tally_client.translate import to_tally_error

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class _Method(Generic[Request, Response]):
    """What unary methods and streams have in common."""

    def __init__(
        self, connection: Connection, request: type[Request], response: type[Response]
    ) -> None:
        descriptor = _method_of(request)
        assert descriptor.output_type is response.DESCRIPTOR
        self.path: Final = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
        """The method's full name."""
        self.timeout_s: Final = policy.TIMEOUTS_S.get(self.path)
        """The default time limit in seconds; None for a stream, which has no limit."""
        self._connection = connection
        self._idempotent = is_idempotent(descriptor)
        self._streams = descriptor.server_streaming
        self._takes_request_id = "request_id" in request.DESCRIPTOR.fields_by_name
        self._request = request
        self._response = response
        self._callable: Any = None

    def _start(self, request: Request, deadline: float | None) -> Any:
        """Send the request once; returns gRPC's call."""
        channel = self._connection.channel()
        if self._callable is None:
            create = channel.unary_stream if self._streams else channel.unary_unary
            self._callable = create(
                self.path,
                request_serializer=self._request.SerializeToString,
                response_deserializer=self._response.FromString,
            )
        left_s = None if deadline is None else max(0.0, deadline - _now())
        return self._callable(request, timeout=left_s, metadata=self._connection.metadata())

    def _deadline(self, timeout_s: float | None) -> float | None:
        """The point on the event loop's clock at which ``timeout_s``, or the default, ends."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        if limit_s is not None and not math.isfinite(limit_s):
            # gRPC would treat it as a deadline that has passed.
            raise ValueError(f"timeout_s must be a finite number of seconds, not {limit_s}")
        return None if limit_s is None else _now() + limit_s

    def _with_request_id(self, request: Request) -> tuple[Request, str]:
        """The request that every attempt sends, and its request_id. Does not change ``request``."""
        if not isinstance(request, self._request):
            # Its bytes would parse as a request of the right type with other fields.
            expected, given = self._request.__name__, type(request).__name__
            raise TypeError(f"{self.path} takes {expected}, not {given}")
        request_id: str = getattr(request, "request_id", "")
        if request_id or not self._takes_request_id:
            return request, request_id
        copy: Any = type(request)()
        copy.CopyFrom(request)
        copy.request_id = new_request_id()
        return copy, copy.request_id

    @contextmanager
    def _tally_errors(self, request_id: str) -> Iterator[None]:
        """Raise gRPC's errors as TallyError, and the closing of the client as NoAnswer."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise to_tally_error(
                error, method=self.path, request_id=request_id, idempotent=self._idempotent
            ) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._connection.closed or (task is not None and task.cancelling()):
                raise
            # Closing the channel cancelled the call; nobody cancelled the task. A CancelledError
            # would end the task without an error that `except Exception` catches; in a gRPC
            # handler, without a status.
            raise NoAnswer(
                "The client was closed before the answer came.",
                code=grpc.StatusCode.CANCELLED,
                method=self.path,
                request_id=request_id,
                may_repeat=self._idempotent,
            ) from None

    def _readable(self, response: Response | None, request_id: str = "") -> Response:
        """The response. Raises NoAnswer if its bytes are none: gRPC logs that and returns None."""
        if response is not None:
            return response
        raise NoAnswer(
            "The response cannot be read.",
            code=grpc.StatusCode.INTERNAL,
            method=self.path,
            request_id=request_id,
            may_repeat=self._idempotent,
        )

    async def _pause_or_raise(
        self, error: TallyError, wait_s: float | None, deadline: float | None
    ) -> None:
        """Wait until the call is to be sent again; raises ``error`` if it is not."""
        if wait_s is None or self._connection.closed:
            raise error
        if deadline is not None and _now() + wait_s >= deadline:
            # The refusal says more than a DeadlineExceeded would.
            raise error
        if self._connection.on_repeat is not None:
            self._connection.on_repeat(error)
        await asyncio.sleep(wait_s)
        if self._connection.closed:
            raise error


class Unary(_Method[Request, Response]):
    """A method with one response."""

    async def __call__(self, request: Request, *, timeout_s: float | None = None) -> Response:
        """Call the method, with retries where they are safe, and return its response.

        An empty request_id is filled in, with a new one for each call; every retry of the call
        sends the same one, and ``error.request_id`` holds it. ``request`` itself is not changed.

        ``timeout_s``: the time limit in seconds for all attempts together, by default the method's
        own (``self.timeout_s``).

        Raises TallyError. A call that cannot be sent raises ValueError (``timeout_s`` is not
        finite), TypeError (a request of another method), NotConnected, ClientClosed, or
        RuntimeError (another event loop).
        """
        request, request_id = self._with_request_id(request)
        deadline = self._deadline(timeout_s)
        retries = 0
        while True:
            try:
                with self._tally_errors(request_id):
                    return self._readable(await self._start(request, deadline), request_id)
            except TallyError as error:
                await self._pause_or_raise(error, policy.wait_s(error, retries), deadline)
            retries += 1


class Listing(Unary[Request, Response]):
    """A method that returns a list page by page."""

    async def pages(
        self, request: Request, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Response, None]:
        """Each page, from the one that ``request`` names to the last.

        ``timeout_s`` is the time limit in seconds of each page. Raises as a call does.
        """
        next_request: Any = type(request)()
        next_request.CopyFrom(request)
        while True:
            page: Any = await self(next_request, timeout_s=timeout_s)
            yield page
            if not page.next_page_token:
                return
            next_request.page_token = page.next_page_token


class Watch(_Method[Request, Response]):
    """A method that returns a stream: the current state, then each change."""

    async def __call__(
        self, request: Request, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Response, None]:
        """Each state, until the service ends the stream because no further change will come.

        A stream that breaks is resumed, on another replica if necessary: a state that was returned
        before is not returned again, and of the changes in between only the last is. Of seats,
        those are returned that have changed since the last version that was complete.

        ``timeout_s``: the time limit in seconds for the whole stream, by default none.

        Raises as a unary method does. A stream that fails before it has sent anything is retried
        as a unary call is; without a time limit, ten refusals in a row end it.
        """
        request, _ = self._with_request_id(request)
        deadline = self._deadline(timeout_s)
        seen: Response | None = None
        refusals = breaks = 0
        while True:
            begun = False
            try:
                async with aclosing(self._states(request, deadline)) as states:
                    async for state in states:
                        begun = True
                        if state != seen:
                            seen, breaks = state, 0
                            request = _continued(request, state)
                            yield state
                return  # noqa: TRY300 - the service ended the stream
            except TallyError as error:
                if begun:
                    wait_s, refusals = policy.resume_s(error, breaks), 0
                    breaks += 1
                else:
                    # The channel has retried it already, as it has sent nothing.
                    wait_s = policy.wait_s(error, refusals)
                    refusals += 1
                if deadline is None and refusals > policy.UNTIMED_REFUSALS_MAX:
                    raise
                await self._pause_or_raise(error, wait_s, deadline)

    async def _states(
        self, request: Request, deadline: float | None
    ) -> AsyncGenerator[Response, None]:
        with self._tally_errors(""):
            call = self._start(request, deadline)
            try:
                async for state in call:
                    yield self._readable(state)
            finally:
                # A consumer that stops early must not be sent more.
                call.cancel()


def _continued(request: Request, state: Response) -> Request:
    """The request for what follows the state, if a request can say that."""
    version: int = getattr(state, "version", 0)
    if not version or "after_version" not in request.DESCRIPTOR.fields_by_name:
        return request
    following = type(request)()
    following.CopyFrom(request)
    setattr(following, "after_version", version)  # noqa: B010 - no type of requests has it
    return following


def _method_of(request: type[Message]) -> MethodDescriptor:
    """The method that takes these requests. The contract names every request after its method."""
    name = request.DESCRIPTOR.name.removesuffix("Request")
    services: Iterable[Any] = request.DESCRIPTOR.file.services_by_name.values()
    found: MethodDescriptor = next(
        service.methods_by_name[name] for service in services if name in service.methods_by_name
    )
    return found


def _now() -> float:
    return asyncio.get_running_loop().time()
