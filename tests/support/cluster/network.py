"""The cluster's network on the loopback interface: addresses, and Services with their endpoints.

Each cluster reserves a /24 of 127.0.0.0/8 by binding port 5353 of its first address, the port of
its DNS server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Final, TypeVar

from tests.support.cluster.manifest import ManifestError, Service

DNS_PORT: Final = 5353
ATTEMPTS: Final = 50
CHUNK_BYTES: Final = 65536
BACKLOG: Final = 1024
"""Connections that wait to be accepted: all clients of a test may connect at once."""

Endpoints = Callable[[Service], list[str]]
"""The addresses of a Service's ready pods."""
Wait = Callable[[], Awaitable[object]]
T = TypeVar("T")


class Addresses:
    """A /24 of loopback addresses, reserved on this machine."""

    def __init__(self) -> None:
        self.held = self._claim()
        self.first = str(self.held.getsockname()[0])
        self._numbers = itertools.count(2)

    def new(self) -> str:
        """An unused address."""
        number = next(self._numbers)
        assert number < 255, "a test cluster has at most 253 pods and Services in its life"
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
        raise RuntimeError("no free /24 among the loopback addresses")


class Services:
    """The Services by name: their addresses, and a proxy for each with a cluster IP."""

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
        """In the block, delay each reply of a Service with a cluster IP.

        For protocols with one reply after each request, such as HTTP/1.1.
        """
        assert name in self._cluster_ips
        self._replies_wait[name] = wait
        try:
            yield
        finally:
            del self._replies_wait[name]

    def port(self, where: str, name: str, port: int) -> Service:
        """The Service of this name that has the port.

        Raises ManifestError, beginning with ``where``, if there is none.
        """
        short, _, domain = name.partition(".")
        service = self._services.get(short)
        if service is None or domain not in {"", *_domains(service)}:
            raise ManifestError(f"{where} names {name}:{port}, and there is no Service {name}")
        if port not in service.ports:
            known = ", ".join(map(str, service.ports))
            raise ManifestError(f"{where} names {name}:{port}; Service {short} has {known}")
        return service

    def cluster_ip(self, name: str) -> str:
        """The cluster IP of a Service that is not headless."""
        return self._cluster_ips[name]

    def resolve(self, name: str) -> list[str] | None:
        """The addresses of a name, possibly none; None if the name does not exist."""
        short, _, domain = name.rstrip(".").partition(".")
        service = self._services.get(short)
        if service is None or domain not in {"", *_domains(service)}:
            return None
        return self._endpoints(service) if service.headless else [self._cluster_ips[short]]

    @contextlib.asynccontextmanager
    async def proxied(self) -> AsyncIterator[None]:
        """Forward connections to cluster IPs to the ready pods, round-robin."""
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
                    request, reply = self._waits(service.name)
                    # The end of one side ends both: none of the protocols half-closes.
                    await first(
                        _copy(reader, pod_writer, request), _copy(pod_reader, writer, reply)
                    )

        return handle

    def _waits(self, name: str) -> tuple[Wait, Wait]:
        """What to await before forwarding a part of a request, and of a reply."""
        replied = False

        async def request() -> None:
            nonlocal replied
            replied = False

        async def reply() -> None:
            nonlocal replied
            # Once for a reply, in however many parts it comes.
            if not replied and (wait := self._replies_wait.get(name)):
                replied = True
                await wait()

        return request, reply


def _domains(service: Service) -> tuple[str, ...]:
    namespace = service.namespace
    return namespace, f"{namespace}.svc", f"{namespace}.svc.cluster.local"


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, before: Wait) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            await before()
            writer.write(data)
            await writer.drain()


async def first(*waits: Coroutine[None, None, T]) -> T:
    """The result of the first that returns; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
