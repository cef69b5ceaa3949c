"""One limit over all replicas, in two stages: the replica's own share, then Redis.

With a limit of ``per_s`` and ``burst``, and ``replicas`` replicas:

1. A key that arrives here less often than ``per_s / (2 × replicas)``, with a burst of
   ``burst / (2 × replicas)``, is admitted without asking anybody.
2. Above it, the limit that all replicas share decides. What it admits or refuses counts in the
   first stage too: of a key that arrives more often than that, the first stage admits nothing.

Only the first stage is not known to the others. So in any window of ``t`` seconds, R replicas admit
at most ``(burst + per_s × t) × (1 + R / (2 × replicas))`` of a key: with the right number of
replicas one and a half times the limit, after a pause or for calls that keep below the share at
some replicas and go on at another one.

While Redis is away each replica limits at ``per_s / replicas`` and ``burst / replicas``, but at no
burst below SHARE_BURST_MIN. One replica alone has the whole limit, and asks nobody.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

from common.errors import RateLimited
from common.gcra import SECOND_NS, Gcra, Rate
from common.rate_limits.shared import SharedLimits

SHARE_BURST_MIN: Final = 5
"""Of a replica's share: a client sends so many duplicates of a call at once, to one replica. The
whole burst, if that is less."""


class TwoStageLimit:
    """The limit of one method, for each user or address."""

    def __init__(
        self,
        name: str,
        rate: Rate,
        *,
        replicas: int,
        shared: SharedLimits | None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """``name``: what its keys in Redis begin with. ``shared``: None without a Redis."""
        self._name = name
        self._rate = rate
        self._shared = shared if replicas > 1 else None
        self._clock_ns = clock_ns
        # A part of the burst times an interval that is as much longer is the same time.
        self._own = Gcra(2 * replicas * rate.interval_ns, rate.burst_ns)
        self._share = share_of(rate, replicas)

    def take(self, key: str) -> Awaitable[None] | None:
        """Count one call: None if it is admitted, or what to wait for. Both raise RateLimited.

        What is waited for raises Overloaded too.
        """
        now_ns = self._clock_ns()
        if self._shared is None or self._shared.absent:
            self._take_of_share(key, now_ns)
            return None
        wait_ns = self._own.take(key, now_ns)
        if wait_ns <= 0:
            return None
        # Beyond its burst the share is used up by a refusal, which holds until then.
        if (refused_ns := wait_ns - self._own.interval_ns) > 0:
            raise _refusal(refused_ns)
        self._own.use_up(key, now_ns)
        return self._ask(self._shared, key)

    def give_back(self, key: str) -> None:
        """Take back a call that was counted: it had no effect."""
        now_ns = self._clock_ns()
        if self._shared is None or self._shared.absent:
            self._share.give_back(key, now_ns)
        elif self._own.wait_ns(key, now_ns) <= 0:
            self._own.give_back(key, now_ns)
        else:
            self._shared.give_back(self._name + key, self._rate)

    async def _ask(self, shared: SharedLimits, key: str) -> None:
        wait_ns = await shared.take(self._name + key, self._rate)
        if wait_ns is None:
            self._take_of_share(key, self._clock_ns())
        elif wait_ns > 0:
            self._own.use_up(key, self._clock_ns(), for_ns=wait_ns)
            raise _refusal(wait_ns)

    def _take_of_share(self, key: str, now_ns: int) -> None:
        # Not both: the share is all that the replica may admit.
        self._own.use_up(key, now_ns)
        if (wait_ns := self._share.take(key, now_ns)) > 0:
            raise _refusal(wait_ns)


def share_of(rate: Rate, replicas: int) -> Gcra:
    """One replica's part of the limit: SHARE_BURST_MIN at once at least."""
    interval_ns = replicas * rate.interval_ns
    burst_least_ns = min(rate.burst, SHARE_BURST_MIN) * interval_ns
    return Gcra(interval_ns, max(rate.burst_ns, burst_least_ns))


def _refusal(wait_ns: int) -> RateLimited:
    return RateLimited(wait_ns / SECOND_NS)
