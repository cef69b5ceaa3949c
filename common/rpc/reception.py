"""Calls whose request has not arrived in whole: how many there may be, and for how long.

gRPC starts a call when its headers have arrived, and runs its handler when its message has. In
between it sets no limit: a client that sends half of a message keeps the call, and what it has
sent, until the end of its connection.

So the calls in between are counted. gRPC receives the messages of a few, which is the fast way;
honest messages arrive with their headers or a moment later, so that this is the way of nearly all
calls. While so many are waited for, the handler of a further call receives its message itself: it
has a time limit, and its status ends the call. Beyond a second number, and beyond a client's share
of it, the time limit is short: many calls of one proxy may come at once, with their messages, and a
busy event loop reads these later. Beyond a third number, and a client's share of it, calls are
refused before their messages. (The few are not shared out: before its message gRPC does not name a
call's client.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from common.deadlines import DeadlineExceeded
from common.errors import Overloaded
from common.rpc.call_ends import Call, CallEnds, Context
from common.rpc.client_address import ClientAddress
from common.rpc.shares import Shares

UNTIMED_MAX: Final = 32
"""Requests without a time limit that are waited for at once."""
TIMED_MAX: Final = 256
"""Requests with a time limit that are waited for at once. With those without, those beyond, and the
largest message that the transport accepts, they are about 250 MiB."""
BEYOND_MAX: Final = 512
"""Requests beyond these numbers that are waited for at once."""
BEYOND_S: Final = 0.25
"""How long each of these is waited for."""
_TOO_LATE: Final = "The request did not arrive in time; nothing was done."


class Reception:
    """The calls of some methods whose requests are waited for."""

    def __init__(self, ends: CallEnds, limit_s: float, addresses: ClientAddress) -> None:
        """``limit_s``: how long a request with a time limit may take to arrive."""
        self._ends = ends
        self._limit_s = limit_s
        self._addresses = addresses
        self._untimed: set[asyncio.Task[object]] = set()
        self._timed = Shares()
        self._beyond = Shares()

    def enter(self) -> bool:
        """Whether gRPC may receive the request of the running task's call, without a time limit."""
        if len(self._untimed) >= UNTIMED_MAX:
            # Nothing tells of a call that was cancelled before its request had arrived.
            self._untimed = {task for task in self._untimed if not task.done()}
            if len(self._untimed) >= UNTIMED_MAX:
                return False
        self._untimed.add(_task())
        return True

    def arrived(self, raw: bytes) -> bytes:
        """Count the running task's call no longer. gRPC takes this for the parsing of requests."""
        self._untimed.discard(_task())
        return raw

    def timed(
        self, method: str, handle: Callable[[bytes, Context], Awaitable[None]]
    ) -> Callable[[AsyncIterator[bytes], Context], Awaitable[None]]:
        """A handler that receives the request itself, within the time limit.

        It ends a call with Overloaded or DeadlineExceeded.
        """

        async def receive_and_handle(_requests: AsyncIterator[bytes], context: Context) -> None:
            call = Call(method, context, time.perf_counter())
            client = self._addresses.share_of(context)
            within = self._timed.has_room(client, 1, TIMED_MAX)
            places = self._timed if within else self._beyond
            if not within and not places.has_room(client, 1, BEYOND_MAX):
                await self._ends.abort(call, Overloaded())
            places.take(client, 1)
            # gRPC writes into what this task waits for: it must not be cancelled. The status below
            # ends the call, and with it the task.
            reading = asyncio.ensure_future(context.read())
            reading.add_done_callback(_forget)
            try:
                await asyncio.wait({reading}, timeout=self._limit_s if within else BEYOND_S)
                if not reading.done():
                    late = DeadlineExceeded(_TOO_LATE) if within else Overloaded()
                    await self._ends.abort(call, late)
            finally:
                places.give_back(client, 1)
            request: object = reading.result()
            if isinstance(request, bytes):  # not EOF: the client has hung up
                await handle(request, context)

        return receive_and_handle


def writing(
    handle: Callable[[bytes, Context], Awaitable[bytes]],
) -> Callable[[bytes, Context], Awaitable[None]]:
    """The unary handler as one that writes its response itself."""

    async def handle_and_write(raw: bytes, context: Context) -> None:
        await context.write(await handle(raw, context))

    return handle_and_write


def _task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None, "gRPC runs each call in a task"
    return task


def _forget(reading: asyncio.Future[Any]) -> None:
    """Take note of an error that nobody waits for: asyncio would log it."""
    if not reading.cancelled():
        reading.exception()
