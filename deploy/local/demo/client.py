"""The customers' client: all replicas in turn, every call repeated until it has a result."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf.message import Message

from tally_client import Tally, TallyError, Unary

ATTEMPT_LIMIT_S: Final = 15.0
"""Time limit of one attempt; a payment with a slow gateway takes longest."""
CALL_LIMIT_S: Final = 60.0
"""After this time a customer gives up, and the demo fails."""
RETRY_S: Final = 0.2
"""Pause after an attempt whose outcome is unknown."""

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class CallStatistics:
    """How many calls were made, which were repeated and why."""

    def __init__(self) -> None:
        self.made = 0
        self.repeated: Counter[str] = Counter()
        """By the error of the attempt before. What channels repeat by themselves is not counted."""
        self.open_at_kill = 0
        self.recovered_s = 0.0
        """From the kill to the last result of a call that was open then."""
        self._open: set[object] = set()
        self._affected: set[object] = set()
        self._killed_at = 0.0

    def note_kill(self) -> None:
        self._affected = set(self._open)
        self.open_at_kill = len(self._open)
        self._killed_at = time.monotonic()

    def note_start(self) -> object:
        call = object()
        self.made += 1
        self._open.add(call)
        return call

    def note_repetition(self, error: TallyError) -> None:
        self.repeated[error.reason or error.code.name] += 1

    def note_end(self, call: object) -> None:
        self._open.discard(call)
        if call in self._affected:
            self._affected.discard(call)
            self.recovered_s = time.monotonic() - self._killed_at


@dataclass(frozen=True, slots=True)
class DemoClient:
    """One client of all services."""

    tally: Tally
    statistics: CallStatistics

    async def call(self, method: Unary[Request, Response], request: Request) -> Response:
        """The response, after as many attempts as it takes, all with the same request_id.

        Raises TallyError for a refusal that another attempt would not change.
        """
        call = self.statistics.note_start()
        until = time.monotonic() + CALL_LIMIT_S
        try:
            while True:
                try:
                    return await method(request, timeout_s=ATTEMPT_LIMIT_S)
                except TallyError as error:
                    wait_s = error.retry_after_s or RETRY_S
                    if not error.may_repeat or time.monotonic() + wait_s > until:
                        raise
                    self.statistics.note_repetition(error)
                await asyncio.sleep(wait_s)
        finally:
            self.statistics.note_end(call)
