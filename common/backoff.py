"""Exponential backoff with jitter, for everything that tries again."""

from __future__ import annotations

import random
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
