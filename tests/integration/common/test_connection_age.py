"""The maximum age of connections: clients find new replicas by it, and lose no call."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from unittest import mock

import pytest

from tests.integration.common.callers import Callers
from tests.integration.common.echo import Held, client_of, serving
from tests.support.cluster import dns

CALLERS = 8
AGE_S = 0.5


@dataclass
class Named:
    """Callers of a name that leads to the old replica, later to the new one."""

    addresses: list[str]
    """What the name server replies."""
    old: Held
    callers: Callers

    def connections(self, *, held: bool) -> list[str]:
        """The connections of the old replica's calls, held or not, in the order of their first."""
        peers = (each.peer for each in self.old.received if (each.value == "hold") is held)
        return list(dict.fromkeys(peers))


@asynccontextmanager
async def named(age_s: float) -> AsyncIterator[Named]:
    """A name with one replica. Another listens on the same port of another address."""
    old, addresses = Held(only="hold"), ["127.0.0.1"]
    held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    held.bind(("127.0.0.1", 0))
    server = f"127.0.0.1:{held.getsockname()[1]}"
    names = dns.Names(mock.Mock(resolve=lambda _name: addresses))
    async with (
        dns.serving(held, names),
        serving(old, replica="old", max_connection_age_s=age_s) as (address, _),
    ):
        port = address.split(":")[1]
        new = serving(replica="new", bind=f"127.0.0.2:{port}", max_connection_age_s=age_s)
        async with new, client_of(f"dns://{server}/echo.test:{port}") as client:
            callers = Callers(client, CALLERS)
            async with callers.calling():
                yield Named(addresses, old, callers)


async def test_a_client_finds_a_new_replica_when_its_connections_have_aged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By DNS, as in Kubernetes. The control is a client whose connections do not age: in the same
    time it stays with the old replica."""
    monkeypatch.setattr(dns, "TTL_S", 0)
    async with named(AGE_S) as aged, named(3_600) as kept:
        both = (aged, kept)
        held = [
            asyncio.create_task(each.callers.call("hold")) for each in both for _ in range(CALLERS)
        ]
        for each in both:
            await each.old.begun.wait()
            await each.callers.more(1)
            each.addresses.append("127.0.0.2")
        answered_by = aged.callers.answered_by
        await aged.callers.until(lambda: "new" in answered_by)
        for each in both:
            each.addresses.remove("127.0.0.1")
        await aged.callers.until(lambda: set(answered_by[-10 * CALLERS :]) == {"new"})
        # The connection of the held calls has aged, and others were opened and closed after it.
        assert aged.connections(held=False)[-1] not in aged.connections(held=True)
        before = answered_by.count("old")
        for each in both:
            each.old.release.set()
        await asyncio.gather(*held)
        assert answered_by.count("old") >= before + CALLERS
        assert (aged.callers.failed, kept.callers.failed) == ([], [])
        assert set(kept.callers.answered_by) == {"old"}
        assert kept.connections(held=False) == kept.connections(held=True)
        assert len(kept.connections(held=True)) == 1
