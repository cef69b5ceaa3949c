"""The address that a call comes from: that of its connection, or the one that a proxy names.

A proxy appends the address of its own client to ``x-forwarded-for``. So the list is read from its
end, as long as each address is that of a trusted proxy: what stands before is the client's own
choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import grpc

from common.peer_address import address_of, ip_of
from common.urls import IpAddress, Networks

FORWARDED_FOR: Final = "x-forwarded-for"


class ClientAddress:
    """Finds the address of a call's client."""

    def __init__(self, proxies: Networks) -> None:
        """``proxies``: the networks of the trusted ones."""
        self._proxies = proxies

    def peer(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> Callable[[], str]:
        """Reads the client, named as gRPC names a peer: a proxy itself if it names none."""
        if not self._proxies:
            return context.peer
        return lambda: self._forwarded(context) or context.peer()

    def address_of(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> str | None:
        """The client's address, of IPv6 its first half; None: a trusted proxy calls for nobody."""
        peer = self._forwarded(context)
        if peer is None:
            peer = context.peer()
        return address_of(peer) if peer else None

    def share_of(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> str:
        """The same, as the holder of a share: a proxy itself if it calls for nobody."""
        return self.address_of(context) or address_of(context.peer())

    def _forwarded(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> str | None:
        """The client that a trusted proxy names; '' if it names none; None: it is no such proxy."""
        if not self._proxies or not self._trusts(ip_of(context.peer())):
            return None
        listed = [
            entry
            for key, value in context.invocation_metadata() or ()
            if key == FORWARDED_FOR
            for entry in str(value).split(",")
        ]
        named = ""
        for entry in reversed(listed):
            # With a port or without: both are in use.
            address = ip_of(f"ip:{entry.strip()}:0") or ip_of(f"ip:{entry.strip()}")
            if address is None:
                break
            named = f"ipv{address.version}:[{address}]:0"
            if not self._trusts(address):
                break
        return named

    def _trusts(self, address: IpAddress | None) -> bool:
        return address is not None and any(address in network for network in self._proxies)
