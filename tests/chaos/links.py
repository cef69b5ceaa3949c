"""The connections of each replica to its database, Redis, gateway and peers, which can fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from deploy.local.plan import Plan
from deploy.local.processes import HOST
from tests.chaos.schedule import CUT, DELAY, EVERY, HOLD, LOSE, LOSE_COMMIT
from tests.support.fake_server import TcpProxy

DELAY_S: Final = 0.3
_SERVERS: Final = {"database": "postgres", "Redis": "valkey"}
_COMMIT: Final = b"COMMIT"


class Link(TcpProxy):
    """A proxy with at most one fault at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.hits = 0
        """Connections and parts of streams that a fault met."""
        self._fault = ""
        self._healed = asyncio.Event()
        self._committing: set[object] = set()
        """Connections on which a COMMIT was sent whose reply is to be lost."""

    def fail(self, action: str) -> None:
        """Begin a fault: one of schedule's LINK_ACTIONS, or LOSE_COMMIT."""
        self._fault = action
        self._healed.clear()
        if action == CUT:
            self.hits += sum(not writer.transport.is_closing() for writer in self._writers)
            self.cut()

    def heal(self) -> None:
        self._fault = ""
        self._healed.set()

    async def before(self, data: bytes, *, to_client: bool, connection: object) -> None:
        fault = self._fault
        if fault == CUT:
            self.hits += 1
            raise ConnectionAbortedError
        if fault == HOLD:
            self.hits += 1
            await self._healed.wait()
        elif fault == DELAY and to_client:
            self.hits += 1
            await asyncio.sleep(DELAY_S)
        elif fault == LOSE and to_client:
            # The caller waits in vain until the connection is lost.
            self.hits += 1
            await self._healed.wait()
            raise ConnectionAbortedError
        elif fault == LOSE_COMMIT and not to_client and _COMMIT in data:
            self._committing.add(connection)
        elif to_client and connection in self._committing:
            # It has replied, so it has committed.
            self._committing.discard(connection)
            self.hits += 1
            raise ConnectionAbortedError


@dataclass
class Links:
    """The links of a stack, each of one replica to one server."""

    by_place: dict[tuple[str, int, str], dict[str, Link]] = field(default_factory=dict)
    """By service, replica and side (as in schedule): the links by the server's address."""

    @classmethod
    @asynccontextmanager
    async def of(cls, plan: Plan) -> AsyncIterator[Links]:
        """The links of a stack that will be started by this plan."""
        links = cls()
        async with AsyncExitStack() as exits:
            for service in plan.services:
                for replica in range(plan.replicas):
                    for side, addresses in _servers_of(plan, service).items():
                        links.by_place[service, replica, side] = {
                            address: await exits.enter_async_context(Link.to(address))
                            for address in addresses
                        }
            yield links

    def between(self, callers: str, side: str) -> Iterator[Link]:
        """The links to a side of a replica, of a service's replicas, or of EVERY service's."""
        for (service, replica, to), links in self.by_place.items():
            if to == side and callers in {f"{service}-{replica}", service, EVERY}:
                yield from links.values()

    def lead(self, service: str, replica: int, environment: dict[str, str]) -> dict[str, str]:
        """The environment of a replica, with the links' addresses for those of the servers."""
        led = dict(environment)
        for (caller, number, _), links in self.by_place.items():
            if (caller, number) != (service, replica):
                continue
            for address, link in links.items():
                led = {name: text.replace(address, link.address) for name, text in led.items()}
        return led


def _servers_of(plan: Plan, service: str) -> dict[str, list[str]]:
    servers = {side: [f"{HOST}:{plan.port(name)}"] for side, name in _SERVERS.items()}
    if service == "payment":
        servers["gateway"] = [f"{HOST}:{plan.port('gateway')}"]
    if service == "order":
        peers = (name for name in plan.services if name != "order")
        servers["peers"] = [address for peer in peers for address in plan.addresses(peer)]
    return servers
