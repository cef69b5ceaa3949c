"""The cluster's network on the loopback interface: addresses, and Services with their endpoints.

Each cluster has a /24 of 127.0.0.0/8 to itself. Port 5353 of its first address is the DNS server's,
and holding it is what makes the network this cluster's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Final

from tests.support.cluster.manifest import ManifestError, Service

DNS_PORT: Final = 5353
ATTEMPTS: Final = 50
CHUNK_BYTES: Final = 65536
BACKLOG: Final = 1024
"""Connections that wait to be accepted: the whole of a crowd may come at once."""

Endpoints = Callable[[Service], list[str]]
"""The addresses of a Service's ready pods."""
Wait = Callable[[], Awaitable[object]]


class Addresses:
    """A /24 of loopback addresses that no other cluster of this machine has."""

    def __init__(self) -> None:
        self.held = self._claim()
        self.first = str(self.held.getsockname()[0])
        self._numbers = itertools.count(2)

    def new(self) -> str:
        """An address that nothing has used yet."""
        number = next(self._numbers)
        assert number < 255, "a test's cluster has no more than 253 pods and Services in its life"
        return f"{self.first.rpartition('.')[0]}.{number}"

    @staticmethod
    def _claim() -> socket.socket:
        for _ in range(ATTEMPTS):
            network = f"127.{random.randint(16, 254)}.{random.randint(0, 255)}"
            held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                held.bind((f"{network}.1", DNS_PORT))
            except OSError:
                held.close()
                continue
            held.setblocking(False)
            return held
        raise RuntimeError("no free network among the loopback addresses")


class Services:
    """The Services by name: what they resolve to, and a proxy for those with an address."""

    def __init__(
        self, services: Mapping[str, Service], addresses: Addresses, endpoints: Endpoints
    ) -> None:
        self._services = services
        self._endpoints = endpoints
        self._cluster_ips = {
            name: addresses.new() for name, service in services.items() if not service.headless
        }
        self._turns = itertools.count()
        self._replies_wait: dict[str, Wait] = {}

    @contextlib.contextmanager
    def replies_wait(self, name: str, wait: Wait) -> Iterator[None]:
        """In the block each reply of a Service with an address of its own waits on the way.

        For protocols that answer request after request, as HTTP/1.1 does.
        """
        assert name in self._cluster_ips
        self._replies_wait[name] = wait
        try:
            yield
        finally:
            del self._replies_wait[name]

    def port(self, told: str, name: str, port: int) -> Service:
        """The Service that something in the manifest names, with a port of it.

        Raises ManifestError that begins with ``told`` if there is none.
        """
        short, _, domain = name.partition(".")
        service = self._services.get(short)
        if service is None or domain not in {"", *_domains(service)}:
            raise ManifestError(f"{told} names {name}:{port}, and there is no Service {name}")
        if port not in service.ports:
            known = ", ".join(map(str, service.ports))
            raise ManifestError(f"{told} names {name}:{port}; Service {short} has {known}")
        return service

    def cluster_ip(self, name: str) -> str:
        """The address of a Service that is not headless."""
        return self._cluster_ips[name]

    def resolve(self, name: str) -> list[str] | None:
        """What cluster DNS answers: addresses, maybe none; None if there is no such name."""
        short, _, domain = name.rstrip(".").partition(".")
        service = self._services.get(short)
        if service is None or domain not in {"", *_domains(service)}:
            return None
        return self._endpoints(service) if service.headless else [self._cluster_ips[short]]

    @contextlib.asynccontextmanager
    async def proxied(self) -> AsyncIterator[None]:
        """Have connections to the Services' own addresses reach their ready pods, by turns."""
        async with contextlib.AsyncExitStack() as stack:
            for name, address in self._cluster_ips.items():
                service = self._services[name]
                for port, target in service.ports.items():
                    server = await asyncio.start_server(
                        self._handler(service, target), address, port, backlog=BACKLOG
                    )
                    stack.push_async_callback(server.wait_closed)
                    stack.callback(server.close)
            yield

    def _handler(
        self, service: Service, port: int
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ready = self._endpoints(service)
            with contextlib.suppress(OSError), contextlib.closing(writer):
                if not ready:
                    writer.transport.abort()
                    return
                pod = ready[next(self._turns) % len(ready)]
                pod_reader, pod_writer = await asyncio.open_connection(pod, port)
                with contextlib.closing(pod_writer):
                    asked, told = self._waits(service.name)
                    # Either side's end is the end: none of the protocols half-closes.
                    await _first(_copy(reader, pod_writer, asked), _copy(pod_reader, writer, told))

        return handle

    def _waits(self, name: str) -> tuple[Wait, Wait]:
        """What to await before passing on a piece of a request, and of a reply."""
        replied = False

        async def asked() -> None:
            nonlocal replied
            replied = False

        async def told() -> None:
            nonlocal replied
            # Once for a reply, in however many pieces it comes.
            if not replied and (wait := self._replies_wait.get(name)):
                replied = True
                await wait()

        return asked, told


def _domains(service: Service) -> tuple[str, ...]:
    namespace = service.namespace
    return namespace, f"{namespace}.svc", f"{namespace}.svc.cluster.local"


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, before: Wait) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            await before()
            writer.write(data)
            await writer.drain()


async def _first(*copies: Coroutine[None, None, None]) -> None:
    tasks = [asyncio.ensure_future(copy) for copy in copies]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
