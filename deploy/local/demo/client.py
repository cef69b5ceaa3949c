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


@dataclass(slots=True)
class OpenCalls:
    """Calls that were under way when a replica was killed."""

    count: int = 0
    answered_s: float = 0.0
    """From the kill to the last answer."""


class CallStatistics:
    """How many calls were made, which were repeated and why."""

    def __init__(self) -> None:
        self.made = 0
        self.repeated: Counter[str] = Counter()
        """By the error of the attempt before. What channels repeat by themselves is not counted."""
        self.at_kill = {slow: OpenCalls() for slow in (False, True)}
        """The calls that were open when the replica was killed. By themselves: those whose card is
        slow or fails take seconds without a kill too."""
        self._open = Counter[bool]()
        self._killed_at = -math.inf

    def note_kill(self) -> None:
        self._killed_at = time.monotonic()
        for slow, calls in self.at_kill.items():
            calls.count = self._open[slow]

    @property
    def open_calls(self) -> int:
        """Calls that are under way now."""
        return self._open.total()

    def note_repetition(self, error: TallyError) -> None:
        self.repeated[error.reason or error.code.name] += 1

    @contextlib.contextmanager
    def counted(self, *, slow: bool) -> Iterator[None]:
        """Count the call that is made in the block."""
        began = time.monotonic()
        self.made += 1
        self._open[slow] += 1
        try:
            yield
        finally:
            self._open[slow] -= 1
            if began < self._killed_at:
                self.at_kill[slow].answered_s = time.monotonic() - self._killed_at


@dataclass(frozen=True, slots=True)
class DemoClient:
    """One client of all services."""

    tally: Tally
    statistics: CallStatistics
    callers: Callers

    async def call(
        self, method: Unary[Request, Response], request: Request, *, slow: bool = False
    ) -> Response:
        """The response, after as many attempts as it takes, all with the same request_id.

        ``slow``: it takes seconds by itself, and is counted apart. Raises TallyError for a refusal
        that another attempt would not change.
        """
        until = time.monotonic() + CALL_LIMIT_S
        self.callers.choose(method.path, request)
        with self.statistics.counted(slow=slow):
            while True:
                try:
                    return await method(request, timeout_s=ATTEMPT_LIMIT_S)
                except TallyError as error:
                    wait_s = error.retry_after_s or RETRY_S
                    if not error.may_repeat or time.monotonic() + wait_s > until:
                        raise
                    self.statistics.note_repetition(error)
                await asyncio.sleep(wait_s)
