"""How many calls of a server run at once, and what a bulk call counts for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from common.errors import Overloaded

BULK_SLOTS_MAX: Final = 128
"""A bulk call counts as one slot per item, at most so many: four large calls fit in half of the
default of 1,024 slots."""


@dataclass(slots=True)
class ConcurrencyLimit:
    """How many calls run, and how many may. A call takes a slot while it runs."""

    slots: int
    running: int = 0
    of_bulk_calls: int = 0
    """Slots that bulk calls have taken."""

    @contextmanager
    def bulk(self, items: int) -> Iterator[None]:
        """Let a running bulk call take a slot for each of its items, up to BULK_SLOTS_MAX.

        Bulk calls get half of the slots at most, so that single calls have the other half. Raises
        Overloaded if that leaves too few.
        """
        share = max(1, self.slots // 2)
        taken = max(1, min(items, BULK_SLOTS_MAX, share))
        more = taken - 1  # the call itself has one already
        if self.of_bulk_calls + taken > share or self.running + more > self.slots:
            raise Overloaded
        self.running += more
        self.of_bulk_calls += taken
        try:
            yield
        finally:
            self.running -= more
            self.of_bulk_calls -= taken
