"""The services as a client of the public API meets them: all replicas by turns, every call
repeated under its own request_id until it has an answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

from google.protobuf.message import Message

from tally_client import Tally, TallyError, Unary

ATTEMPT_S: Final = 15.0
"""Time limit of one call; paying with a slow gateway is the longest."""
PATIENCE_S: Final = 60.0
"""After this a customer gives up, which fails the demo."""
AGAIN_S: Final = 0.2
"""Until a call is made again whose outcome nobody told."""

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Calls:
    """What the client side had to do: how many calls, which were repeated and why."""

    def __init__(self) -> None:
        self.made = 0
        self.repeated: Counter[str] = Counter()
        """By what the attempt before ended with; what channels repeat by themselves is not seen."""
        self.open_at_kill = 0
        self.recovered_s = 0.0
        """From the kill to the last answer of a call that was open then."""
        self._open: set[object] = set()
        self._waited_for: set[object] = set()
        self._killed_at = 0.0

    def note_kill(self) -> None:
        self._waited_for = set(self._open)
        self.open_at_kill = len(self._open)
        self._killed_at = time.monotonic()

    def begin(self) -> object:
        call = object()
        self.made += 1
        self._open.add(call)
        return call

    def note_repetition(self, error: TallyError) -> None:
        self.repeated[error.reason or error.code.name] += 1

    def end(self, call: object) -> None:
        self._open.discard(call)
        if call in self._waited_for:
            self._waited_for.discard(call)
            self.recovered_s = time.monotonic() - self._killed_at


class Shop:
    """One client of all the services; a context manager."""

    def __init__(self, services: Mapping[str, Sequence[str]]) -> None:
        """``services``: the addresses of each service's replicas."""
        self.calls = Calls()
        self.tally = Tally(**services, on_repeat=self.calls.note_repetition)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.tally.close()

    async def ask(self, method: Unary[Request, Response], request: Request) -> Response:
        """The answer, however often it has to be asked for, always under the same request_id.

        Raises TallyError with what the service said no with.
        """
        call = self.calls.begin()
        patient_until = time.monotonic() + PATIENCE_S
        try:
            while True:
                try:
                    return await method(request, timeout_s=ATTEMPT_S)
                except TallyError as error:
                    wait_s = error.retry_after_s or AGAIN_S
                    if not error.may_repeat or time.monotonic() + wait_s > patient_until:
                        raise
                    self.calls.note_repetition(error)
                await asyncio.sleep(wait_s)
        finally:
            self.calls.end(call)
