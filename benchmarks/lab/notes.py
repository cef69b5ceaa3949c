"""What a process counts and times while a cell runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

CONFLICTS: Final = "conflicts"
"""Writes that found another version, or a unique key that was taken by another's."""
FIRST_CHECK: Final = "first_check"
"""Requests that were refused by a check before any lock and transaction."""


@dataclass(slots=True)
class Notes:
    """The counters and times of one process."""

    counts: Counter[str] = field(default_factory=Counter)
    waits_ms: list[float] = field(default_factory=list)
    """For a lock, from its request on: a row's, or a key's."""
    holds_ms: list[float] = field(default_factory=list)
    """From having the lock to its end: commit, or release of the key."""
    gateway: Counter[int] = field(default_factory=Counter)
    """Calls of the gateway, by payment."""
    depth: int = 0
    depth_max: int = 0

    @contextmanager
    def queued(self) -> Iterator[None]:
        """A request waits in a queue, or for a lock, while the block runs."""
        self.depth += 1
        self.depth_max = max(self.depth_max, self.depth)
        try:
            yield
        finally:
            self.depth -= 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A request waits for a lock while the block runs."""
        began = time.perf_counter()
        with self.queued():
            yield
        self.waits_ms.append((time.perf_counter() - began) * 1000)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """A request holds its lock while the block runs."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.holds_ms.append((time.perf_counter() - began) * 1000)
