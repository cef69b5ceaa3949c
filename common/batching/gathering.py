"""Whether a batch waits for more callers: only while that saves a busy processor work.

grpc.aio hands calls over one by one, however many wait. On a busy processor each would find no
statement running and get one of its own, which costs more than the call itself. A wait of some
milliseconds makes batches of them, and takes nothing from callers who wait much longer for their
turn. A processor with time to spare is better used for a statement each, at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

GATHER_S: Final = 0.005
"""How long a batch waits."""
GATHER_FROM: Final = 3
"""Callers that a batch must have had for its wait to have paid."""
IN_VAIN_MAX: Final = 8
"""Waits in a row that found fewer, after which batches do not wait any more: replies that are sent
together bring the next calls together, with pauses between."""
TRY_EVERY: Final = 256
"""Batches without a wait after which one is tried. So rarely that a caller who is alone, on
a processor that it keeps busy, sees it in fewer than 1 % of its calls."""
BUSY_SHARE: Final = 0.5
"""The part of one core from which on the process counts as busy."""
MEASURE_S: Final = 0.05
"""The time over which the part is measured."""


class Processor:
    """How busy this process is, by the processor time that it used of late."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock, self._used = clock, used
        self._since_s, self._used_s = clock(), used()
        self._busy = False

    @property
    def busy(self) -> bool:
        """Whether it used at least BUSY_SHARE of a core when that was last measured."""
        now = self._clock()
        passed = now - self._since_s
        if passed >= MEASURE_S:
            used = self._used()
            self._busy = used - self._used_s >= BUSY_SHARE * passed
            self._since_s, self._used_s = now, used
        return self._busy


PROCESSOR: Final = Processor()


class Gathering:
    """The waits of one kind of batch."""

    def __init__(self, processor: Processor = PROCESSOR) -> None:
        self._processor = processor
        self._in_vain = IN_VAIN_MAX
        self._batches = 0
        """Those since one waited."""
        self.waiting = False
        """Whether a batch waits: callers join it, and need no other."""

    async def wait(self) -> bool:
        """Wait for callers, if that pays; returns whether it did. Then call ``found``."""
        self._batches += 1
        tries = self._in_vain < IN_VAIN_MAX or self._batches > TRY_EVERY
        if not (self._processor.busy and tries):
            return False
        self._batches = 0
        self.waiting = True
        try:
            await asyncio.sleep(GATHER_S)
        finally:
            self.waiting = False
        return True

    def found(self, callers: int) -> None:
        """Tell how many callers a batch that waited had."""
        paid = callers >= GATHER_FROM
        self._in_vain = 0 if paid else min(self._in_vain + 1, IN_VAIN_MAX)
