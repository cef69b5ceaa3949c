"""Exponential backoff with jitter, for everything that tries again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_DOUBLINGS_MAX: Final = 32
"""Enough to reach any maximum. Without a bound, 2 to the power of a large count overflows."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that double from ``first_s`` to ``max_s``, in seconds.

    Each pause is multiplied by a random factor from ``jitter``: contenders that failed together
    retry at different times.
    """

    first_s: float
    max_s: float
    jitter: tuple[float, float] = (0.5, 1.0)

    def pause_s(self, attempt: int) -> float:
        """The pause after the failed attempt number ``attempt``, counted from 1."""
        doublings = min(attempt - 1, _DOUBLINGS_MAX)
        return min(self.max_s, self.first_s * 2.0**doublings) * random.uniform(*self.jitter)  # noqa: S311


class Postponed:
    """Work that failed in this replica: each piece waits for a pause that grows with its failures.

    For sweeps: what fails again and again is tried less and less often, and stops nothing else.
    """

    def __init__(
        self,
        backoff: Backoff,
        *,
        size_max: int = 1_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``size_max``: how many pieces are remembered; then the oldest is forgotten."""
        self._backoff = backoff
        self._size_max = size_max
        self._clock = clock
        self._failures: dict[str, tuple[int, float]] = {}

    def is_due(self, id_: str) -> bool:
        """Whether the work may be tried now."""
        return self._clock() >= self._failures.get(id_, (0, 0.0))[1]

    def fail(self, id_: str) -> bool:
        """Postpone the work; returns whether this was its first failure."""
        count = self._failures.pop(id_, (0, 0.0))[0] + 1
        if len(self._failures) >= self._size_max:
            del self._failures[next(iter(self._failures))]
        self._failures[id_] = count, self._clock() + self._backoff.pause_s(count)
        return count == 1

    def forget(self, id_: str) -> None:
        """The work has succeeded."""
        self._failures.pop(id_, None)
