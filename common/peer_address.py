"""The address in gRPC's name of a peer, such as ``ipv4:10.0.0.7:40312``."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from common.urls import IpAddress

_REMEMBERED: Final = 1024
"""Peers whose addresses are not found anew: calls of one connection have the same one."""


@lru_cache(maxsize=_REMEMBERED)
def address_of(peer: str) -> str:
    """The address without its port.

    Of an IPv6 address the first half: the rest is the client's own choice.
    """
    address = ip_of(peer)
    if address is None:
        return peer.partition(":")[0]  # a Unix socket has no address
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


def ip_of(peer: str) -> IpAddress | None:
    """The same, whole; None if the peer has none. An IPv4 address in IPv6's form is one of IPv4."""
    host = unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
