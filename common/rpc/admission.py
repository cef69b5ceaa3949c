"""Identity, access and rate limit in front of the handler of each method.

A method that has neither a guard nor a limit keeps its handler as it is.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

from common.identity.caller import running_caller
from common.rpc.call_ends import Call, CallEnds, Context
from common.rpc.guard import Guard, Metadata, MethodGuard, OpenGuard
from common.rpc.open_streams import OpenStreams
from common.rpc.rate_limit import MethodLimit, RateLimits
from common.rpc.validation import Parse


class Admission:
    """Puts the guards and limits of one server in front of its handlers."""

    def __init__(
        self,
        ends: CallEnds,
        streams: OpenStreams,
        guard: Guard | None,
        limits: RateLimits | None,
        exempt: Collection[str],
    ) -> None:
        """``guard``: None admits everyone. ``limits``: None: no rate is limited. ``exempt``: full
        names of services without both."""
        self._ends = ends
        self._streams = streams
        self._guard = guard
        self._limits = limits
        self._exempt = exempt

    def guard_of(self, method: str, parse: Parse, bytes_max: int) -> MethodGuard | None:
        """The guard of the method. Raises TypeError if the contract admits nobody to it."""
        if self._guard is None or self._is_exempt(method):
            return None
        return self._guard.of(method, parse, bytes_max)

    def limit_of(self, method: str) -> MethodLimit | None:
        """The rate limit of the method."""
        if self._limits is None or self._is_exempt(method):
            return None
        return self._limits.of(method)

    def _is_exempt(self, method: str) -> bool:
        return method.split("/")[1] in self._exempt

    def before_unary(
        self,
        guard: MethodGuard | OpenGuard,
        rate_limit: MethodLimit | None,
        method: str,
        handle: Callable[[Any, Context], Awaitable[bytes]],
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """The handler of a unary method behind its guard and its rate limit, if it has them."""
        is_open = isinstance(guard, OpenGuard)
        if is_open and rate_limit is None:
            return handle

        admit = guard.admit
        take = None if rate_limit is None else rate_limit.take

        async def admit_and_handle(
            raw: bytes, context: Context, metadata: Metadata | None = None
        ) -> bytes:
            try:
                admitted = admit(raw, context, metadata)
                if take is not None:
                    waits = take(admitted.request, admitted.caller, context)
                    if waits is not None:
                        await waits
            except BaseException as error:
                await self._ends.abort(_refused(method, context), error)
                raise
            return await handle(raw if is_open else admitted, context)

        return admit_and_handle

    def before_stream(
        self,
        guard: MethodGuard | OpenGuard,
        rate_limit: MethodLimit | None,
        method: str,
        handle: Callable[[Any, Context], Awaitable[None]],
    ) -> Callable[[bytes | AsyncIterator[bytes], Context], Awaitable[None]]:
        """The same for a stream, which ends when its caller's token expires."""
        is_open = isinstance(guard, OpenGuard)
        if is_open and rate_limit is None:
            return handle

        async def admit_and_handle(raw: bytes | AsyncIterator[bytes], context: Context) -> None:
            assert isinstance(raw, bytes), "no method of the contract takes a stream"
            try:
                admitted = guard.admit(raw, context)
                if rate_limit is not None:
                    waits = rate_limit.take(admitted.request, admitted.caller, context)
                    if waits is not None:
                        await waits
            except BaseException as error:
                await self._ends.abort(_refused(method, context), error)
                raise
            with self._streams.ended_with_token(admitted.caller):
                await handle(raw if is_open else admitted, context)

        return admit_and_handle


def _refused(method: str, context: Context) -> Call:
    """A call that is not admitted. Its request is not validated, so the log has nothing of it."""
    return Call(method, context, time.perf_counter(), None, running_caller())
