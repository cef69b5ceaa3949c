"""The generic cell rate algorithm (GCRA), in memory: so many per second, and so many at once.

Of each key one number is kept: the time at which nothing of its burst will be used any more, its
theoretical arrival time (TAT). An arrival moves it on by one interval. It conforms if the TAT is
then at most the burst ahead of now. Times are whole nanoseconds, so that no sum of fractions
refuses the last arrival of a burst.
"""

from __future__ import annotations

from typing import Final, NamedTuple

KEYS_MAX: Final = 10_000
"""Keys that are kept, about 200 bytes each. Those that did not arrive for the longest time are
forgotten, and have their whole burst again."""
SECOND_NS: Final = 1_000_000_000


class Rate(NamedTuple):
    """A limit. As a setting it is ``<per_s>:<burst>``."""

    per_s: float
    burst: int
    """How many may arrive at once, after a pause."""

    @property
    def interval_ns(self) -> int:
        """From one arrival to the next, at this rate."""
        return round(SECOND_NS / self.per_s)

    @property
    def burst_ns(self) -> int:
        """How long it takes until the whole burst can be used again."""
        return self.burst * self.interval_ns

    def __str__(self) -> str:
        return f"{self.per_s:g}:{self.burst}"


class Gcra:
    """One limit for each key. ``now_ns``: by a clock that never goes back."""

    def __init__(self, interval_ns: int, burst_ns: int, *, keys_max: int = KEYS_MAX) -> None:
        """``burst_ns``: the burst times the interval. Less than one interval admits nothing."""
        self.interval_ns: Final = interval_ns
        self._burst_ns = burst_ns
        # Two generations: when the younger one is full, the older one is forgotten.
        self._generation_max = max(1, keys_max // 2)
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}

    def __len__(self) -> int:
        """How many keys are kept; one that is in both generations counts twice."""
        return len(self._young) + len(self._old)

    def take(self, key: str, now_ns: int) -> int:
        """Count one arrival if it conforms; returns after how many ns one does, 0 or less if so."""
        tat_ns = self._tat_ns(key, now_ns)
        wait_ns = tat_ns + self.interval_ns - now_ns - self._burst_ns
        if wait_ns <= 0:
            self._set(key, tat_ns + self.interval_ns)
        return wait_ns

    def wait_ns(self, key: str, now_ns: int) -> int:
        """The same, without counting."""
        return self._tat_ns(key, now_ns) + self.interval_ns - now_ns - self._burst_ns

    def charge(self, key: str, now_ns: int) -> None:
        """Count one arrival, whether it conforms or not."""
        self._set(key, self._tat_ns(key, now_ns) + self.interval_ns)

    def use_up(self, key: str, now_ns: int, *, for_ns: int = 0) -> None:
        """Leave nothing of the burst; nothing comes back for ``for_ns``."""
        self._set(key, max(self._tat_ns(key, now_ns), now_ns + self._burst_ns + for_ns))

    def give_back(self, key: str, now_ns: int) -> None:
        """Take back one arrival that was counted."""
        self._set(key, max(now_ns, self._tat_ns(key, now_ns) - self.interval_ns))

    def _tat_ns(self, key: str, now_ns: int) -> int:
        tat_ns = self._young.get(key)
        if tat_ns is None:
            tat_ns = self._old.get(key, now_ns)
            if tat_ns > now_ns:
                # Also if it is refused now: else it had its whole burst again with the next
                # generation.
                self._set(key, tat_ns)
        return max(now_ns, tat_ns)

    def _set(self, key: str, tat_ns: int) -> None:
        self._young[key] = tat_ns
        if len(self._young) >= self._generation_max:
            self._old, self._young = self._young, {}
