"""Addresses of servers: ``host:port``, and the gRPC targets of such addresses."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

PORT_MAX: Final = 65535

_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_FAMILIES: Final = {"ipv4": 4, "ipv6": 6}
_SCHEMES: Final = ("dns", "unix", *_FAMILIES)


def split_host_port(address: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[ipv6]:port``. Raises ValueError if it is neither."""
    match = _HOST_PORT.fullmatch(address)
    if match is None or int(match[2]) > PORT_MAX:
        raise ValueError(f"must be host:port with a port from 0 to {PORT_MAX}")
    return match[1], int(match[2])


def target(addresses: str) -> str:
    """The gRPC target of a ``host:port``, of numeric ``ip:port``s with commas, or of a URI.

    A URI is one of gRPC's: ``dns:///host:port``, with an optional name server between the slashes,
    ``ipv4:``, ``ipv6:`` or ``unix:``. Raises ValueError for anything else, and for several names:
    gRPC takes one name, which may have many addresses, or several numeric addresses.
    """
    scheme, _, rest = addresses.partition(":")
    if scheme in _SCHEMES or "/" in addresses:
        _check_uri(scheme, rest)
        return addresses
    listed = [address.strip() for address in addresses.split(",") if address.strip()]
    if not listed:
        raise ValueError("must name at least one host:port")
    hosts = [split_host_port(address)[0].strip("[]") for address in listed]
    if len(listed) == 1 and _version(hosts[0]) is None:
        return f"dns:///{listed[0]}"
    listed = [
        address.replace("localhost", "127.0.0.1", 1) if host == "localhost" else address
        for address, host in zip(listed, hosts, strict=True)
    ]
    versions = {4 if host == "localhost" else _version(host) for host in hosts}
    if versions == {4}:
        return "ipv4:" + ",".join(listed)
    if versions == {6}:
        return "ipv6:" + ",".join(listed)
    raise ValueError("must be one name, or numeric addresses of one family")


def _check_uri(scheme: str, rest: str) -> None:
    """Raise ValueError for a URI that gRPC would accept and then try to resolve for ever."""
    if scheme == "dns":
        authority, name = "", rest
        if rest.startswith("//"):
            authority, _, name = rest[2:].partition("/")
        if not name and authority:
            raise ValueError("must name a host: a DNS server follows two slashes, a host three")
        split_host_port(name)
    elif scheme in _FAMILIES:
        for address in rest.split(","):
            if _version(split_host_port(address)[0].strip("[]")) != _FAMILIES[scheme]:
                raise ValueError(f"must have numeric {scheme} addresses with ports")
    elif scheme != "unix" or not rest.strip("/"):
        raise ValueError("must be host:port, or begin with dns:///, ipv4:, ipv6: or unix:")


def _version(host: str) -> int | None:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None
