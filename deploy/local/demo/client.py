"""The customers' client: all replicas in turn, every call repeated until it has a result."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf.message import Message

from deploy.local.demo.callers import Callers
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
        self._open = 0
        self._killed_at = -math.inf

    def note_kill(self) -> None:
        self.open_at_kill = self._open
        self._killed_at = time.monotonic()

    def note_repetition(self, error: TallyError) -> None:
        self.repeated[error.reason or error.code.name] += 1

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count the call that is made in the block."""
        began = time.monotonic()
        self.made += 1
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            if began < self._killed_at:
                self.recovered_s = time.monotonic() - self._killed_at


@dataclass(frozen=True, slots=True)
class DemoClient:
    """One client of all services."""

    tally: Tally
    statistics: CallStatistics
    callers: Callers

    async def call(self, method: Unary[Request, Response], request: Request) -> Response:
        """The response, after as many attempts as it takes, all with the same request_id.

        Raises TallyError for a refusal that another attempt would not change.
        """
        until = time.monotonic() + CALL_LIMIT_S
        self.callers.choose(method.path, request)
        with self.statistics.counted():
            while True:
                try:
                    return await method(request, timeout_s=ATTEMPT_LIMIT_S)
                except TallyError as error:
                    wait_s = error.retry_after_s or RETRY_S
                    if not error.may_repeat or time.monotonic() + wait_s > until:
                        raise
                    self.statistics.note_repetition(error)
                await asyncio.sleep(wait_s)
