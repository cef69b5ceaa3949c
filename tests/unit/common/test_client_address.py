"""Whose address a call counts for: the connection's, or the one that a trusted proxy names."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, cast

import pytest

from common.rpc.client_address import FORWARDED_FOR, ClientAddress

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@dataclass
class Context:
    """A call of this peer, with these values of the header."""

    name: str
    forwarded: tuple[str, ...] = ()

    def peer(self) -> str:
        return self.name

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("user-agent", "test"), *((FORWARDED_FOR, value) for value in self.forwarded))


PROXY, STRANGER = "ipv4:10.0.0.7:1", "ipv4:198.51.100.9:1"
CASES = [
    ("no proxy", STRANGER, (), "198.51.100.9"),
    ("a stranger's own header", STRANGER, ("203.0.113.5",), "198.51.100.9"),
    ("a proxy names its client", PROXY, ("203.0.113.5",), "203.0.113.5"),
    ("with a port", PROXY, ("203.0.113.5:4711",), "203.0.113.5"),
    ("IPv6", PROXY, ("2001:db8:1:2::9",), "2001:db8:1:2::/64"),
    ("IPv6 with a port", PROXY, ("[2001:db8:1:2::9]:443",), "2001:db8:1:2::/64"),
    ("IPv4 in IPv6", "ipv6:%5B::ffff:10.0.0.7%5D:1", ("::ffff:203.0.113.5",), "203.0.113.5"),
    ("a proxy of IPv6", "ipv6:%5Bfd00::1%5D:1", ("203.0.113.5",), "203.0.113.5"),
    ("proxies in a row", PROXY, ("203.0.113.5, 10.1.1.1,10.2.2.2",), "203.0.113.5"),
    ("the client's own choice", PROXY, ("192.0.2.1, 203.0.113.5, 10.1.1.1",), "203.0.113.5"),
    ("two headers", PROXY, ("192.0.2.1", "203.0.113.5"), "203.0.113.5"),
    ("garbage before it", PROXY, ("x'; DROP TABLE, 203.0.113.5",), "203.0.113.5"),
    ("all are proxies", PROXY, ("10.3.3.3, 10.1.1.1",), "10.3.3.3"),
    ("a proxy that names nobody", PROXY, (), None),
    ("a proxy that names no address", PROXY, ("unknown",), None),
    ("an empty name", PROXY, ("",), None),
    ("a Unix socket", "unix:", ("203.0.113.5",), "unix"),
]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_call_counts_for_the_address_of_its_client(
    peer: str, forwarded: tuple[str, ...], address: str | None
) -> None:
    context: Any = Context(peer, forwarded)
    assert ClientAddress(TRUSTED).address_of(context) == address


@pytest.mark.parametrize("forwarded", [(), ("203.0.113.5",)])
def test_without_trusted_proxies_no_header_is_read(forwarded: tuple[str, ...]) -> None:
    context: Any = Context(PROXY, forwarded)
    addresses = ClientAddress(())
    assert addresses.address_of(context) == "10.0.0.7"
    assert addresses.peer(context)() == PROXY


def test_wrong_signatures_count_for_the_client_or_else_for_the_proxy() -> None:
    addresses = ClientAddress(TRUSTED)
    named, silent = (cast(Any, Context(PROXY, each)) for each in (("203.0.113.5",), ()))
    assert addresses.peer(named)() == "ipv4:[203.0.113.5]:0"
    assert addresses.peer(silent)() == PROXY
