"""A DNS server of the test, so that a name can get a new address while clients use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dnslib import QTYPE, RR, A
from dnslib.server import BaseResolver, DNSServer


class Names(BaseResolver):  # type: ignore[misc]
    """Answers every name with the addresses that the test sets."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.port = 0

    def target(self, name: str, port: int) -> str:
        """The gRPC target of ``name``, resolved here."""
        return f"dns://127.0.0.1:{self.port}/{name}:{port}"

    def resolve(self, request: Any, handler: Any) -> Any:
        reply = request.reply()
        if request.q.qtype == QTYPE.A:
            for address in self.addresses:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=0))
        return reply


class _NoLog:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@contextmanager
def name_server(*addresses: str) -> Iterator[Names]:
    names = Names(*addresses)
    server = DNSServer(names, address="127.0.0.1", port=0, logger=_NoLog())
    names.port = server.server.server_address[1]
    server.start_thread()
    try:
        yield names
    finally:
        server.stop()
        server.server.server_close()
