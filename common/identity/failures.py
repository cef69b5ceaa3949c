"""How many tokens with a wrong signature an address may send.

To verify a signature costs as much as half of a call. A client that has a real token, even an old
one, never fails there: only that failure counts, and it does not lock out others behind the same
address for what they cannot help. Tokens that were verified before are not limited at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from common.gcra import SECOND_NS, Gcra
from common.peer_address import address_of

BURST: Final = 50
"""Wrong signatures that an address may send at once."""
INTERVAL_S: Final = 0.1
"""After them, one in this time."""
ADDRESSES_MAX: Final = 10_000
"""Addresses that are remembered; beyond that the oldest are forgotten."""


class FailureLimit:
    """Counts wrong signatures by address."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock_ns = clock_ns
        interval_ns = round(INTERVAL_S * SECOND_NS)
        self._seen = Gcra(interval_ns, BURST * interval_ns, keys_max=ADDRESSES_MAX)

    def exceeded(self, peer: str) -> bool:
        """Whether no signature from this peer, as gRPC names it, is verified for now."""
        return self._seen.wait_ns(address_of(peer), self._clock_ns()) > 0

    def note(self, peer: str) -> None:
        """Count a wrong signature from this peer."""
        self._seen.charge(address_of(peer), self._clock_ns())
