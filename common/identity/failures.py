"""How many tokens with a wrong signature an address may send.

To verify a signature costs as much as half of a call. A client that has a real token, even an old
one, never fails there: only that failure counts, and it does not lock out others behind the same
address for what they cannot help. Tokens that were verified before are not limited at all.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

BURST: Final = 50
"""Wrong signatures that an address may send at once."""
INTERVAL_S: Final = 0.1
"""After them, one in this time."""
ADDRESSES_MAX: Final = 10_000
"""Addresses that are remembered; beyond that the oldest are forgotten."""


class FailureLimit:
    """Counts wrong signatures by address (GCRA)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free_at_s: dict[str, float] = {}
        """When an address will have used up nothing of its burst."""

    def exceeded(self, peer: str) -> bool:
        """Whether no signature from this peer, as gRPC names it, is verified for now."""
        free_at_s = self._free_at_s.get(address_of(peer))
        # Half an interval of slack: sums of fractions are not exact.
        return free_at_s is not None and free_at_s - self._clock() > (BURST - 0.5) * INTERVAL_S

    def note(self, peer: str) -> None:
        """Count a wrong signature from this peer."""
        address, now_s = address_of(peer), self._clock()
        free_at_s = max(now_s, self._free_at_s.pop(address, now_s)) + INTERVAL_S
        if len(self._free_at_s) >= ADDRESSES_MAX:
            del self._free_at_s[next(iter(self._free_at_s))]
        self._free_at_s[address] = free_at_s


def address_of(peer: str) -> str:
    """The address in gRPC's name of a peer, such as ``ipv4:10.0.0.7:40312``, without its port.

    Of an IPv6 address the first half: the rest is the client's own choice.
    """
    host = unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer.partition(":")[0]  # a Unix socket has no address
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
