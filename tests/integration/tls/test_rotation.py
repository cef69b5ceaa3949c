"""Certificates and authorities are replaced under load, on both sides, and no call fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from common.rpc.client import ServiceClient
from common.tls import CERTIFICATE
from tally_client.rpc.channels import open_channel
from tests.integration.common.callers import Callers
from tests.integration.common.echo import EchoStub, Held, serving
from tests.support.certificates import (
    HOST,
    NAME,
    ORDER,
    Authority,
    certificates_in,
    write_certificate,
    write_trusted,
)
from tests.support.payments import until
from tests.support.waits import until_true

CALLERS = 8
AGE_S = 1.0
"""Of connections: new ones are made all the time, with whatever the files have then."""
ENOUGH = 300
"""Calls that have to succeed between two steps."""


@pytest.fixture(autouse=True)
def read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.certificates.REFRESH_S", 0.05)
    monkeypatch.setattr("tally_client.rpc.rotation.REFRESH_S", 0.05)


@dataclass
class Pair:
    """Two replicas with mutual TLS, and callers of both."""

    servers: Path
    """The directory of the replicas."""
    client: Path
    """That of the caller."""
    channel: Any
    callers: Callers

    async def settled(self) -> None:
        """Wait until the files are in use on both sides, and calls have succeeded with them."""
        files = certificates_in(self.client).read()

        async def in_use() -> bool:
            return bool(self.channel._pems == files)

        await until(in_use)
        before = len(self.callers.answered_by)
        # Longer than the age of connections: each has been made anew.
        await asyncio.sleep(2 * AGE_S)
        await until_true(lambda: len(self.callers.answered_by) >= before + ENOUGH)


@asynccontextmanager
async def pair(folder: Path, authority: Authority) -> AsyncIterator[Pair]:
    servers = write_certificate(folder / "servers", authority)
    own = write_certificate(folder / "client", authority, uris=[ORDER])
    given: dict[str, Any] = {
        "peer_tls_dir": str(servers),
        "peer_bind": f"{HOST}:0",
        "max_connection_age_s": AGE_S,
    }
    async with (
        serving(replica="one", **given) as (_, one),
        serving(replica="two", **given) as (_, two),
    ):
        addresses = ",".join(f"{HOST}:{each.ports['peer_bind']}" for each in (one, two))
        channel = open_channel(addresses, certificates=certificates_in(own, NAME))
        async with ServiceClient(channel, EchoStub) as client:
            await channel.channel_ready()
            yield Pair(servers, own, channel, Callers(client, CALLERS))


async def test_certificates_and_their_authority_are_replaced_without_a_failed_call(
    tmp_path: Path,
) -> None:
    old, new = Authority(), Authority()
    async with pair(tmp_path, old) as two, two.callers.calling():
        # The same authority signs new certificates.
        write_certificate(two.servers, old)
        write_certificate(two.client, old, uris=[ORDER])
        await two.settled()
        # Both sides trust the new authority, before anyone has a certificate of it.
        for directory in (two.servers, two.client):
            write_trusted(directory, old, new)
        await two.settled()
        write_certificate(two.servers, new, old, new)
        write_certificate(two.client, new, old, new, uris=[ORDER])
        await two.settled()
        for directory in (two.servers, two.client):
            write_trusted(directory, new)
        await two.settled()
        assert set(two.callers.answered_by[-ENOUGH:]) == {"one", "two"}
    assert two.callers.failed == []


async def test_control_a_new_authority_that_is_not_trusted_first_fails_calls(
    tmp_path: Path,
) -> None:
    old, new = Authority(), Authority()
    async with pair(tmp_path, old) as two, two.callers.calling():
        write_certificate(two.servers, new, old, new)
        await until_true(lambda: bool(two.callers.failed))


async def test_files_that_cannot_be_used_leave_the_last_good_ones_in_use(tmp_path: Path) -> None:
    authority = Authority()
    async with pair(tmp_path, authority) as two:
        with capture_logs() as logged:
            for directory in (two.servers, two.client):
                (directory / CERTIFICATE).write_text("broken")

            async def noted() -> Any:
                return two.channel._problem and "certificate_not_read" in str(logged)

            await until(noted)
            async with two.callers.calling():
                await until_true(lambda: len(two.callers.answered_by) >= ENOUGH)
    assert two.callers.failed == []


async def test_an_unforeseen_error_does_not_end_the_reading_of_a_client(tmp_path: Path) -> None:
    authority = Authority()
    async with pair(tmp_path, authority) as two:
        first, certificates = two.channel._pems, certificates_in(two.client)
        failing = iter([MemoryError("no memory"), RuntimeError("cannot start a thread")])

        def read() -> Any:
            if error := next(failing, None):
                raise error
            return certificates.read()

        two.channel._certificates = SimpleNamespace(read=read)
        write_certificate(two.client, authority, uris=[ORDER])
        await until_true(lambda: two.channel._pems != first)


async def test_a_call_that_runs_when_the_channel_is_replaced_gets_its_answer(
    tmp_path: Path,
) -> None:
    """On the old channel, which ends after it."""
    authority, held = Authority(), Held()
    servers = write_certificate(tmp_path / "servers", authority)
    own = write_certificate(tmp_path / "client", authority)
    async with serving(held, peer_tls_dir=str(servers), peer_bind=f"{HOST}:0") as (_, server):
        channel: Any = open_channel(
            f"{HOST}:{server.ports['peer_bind']}", certificates=certificates_in(own)
        )
        async with ServiceClient(channel, EchoStub) as client:
            call = asyncio.ensure_future(client.stub.say("held"))
            stream = client.stub.count("held")
            assert (await stream.read()).value == "held"
            await held.begun.wait()
            old = channel.current
            write_certificate(own, authority)

            async def replaced() -> bool:
                return channel.current is not old

            await until(replaced)
            assert channel._draining
            held.release.set()
            assert (await call).value == "held"
            assert await stream.read() is grpc.aio.EOF

            async def drained() -> bool:
                return not channel._draining

            await until(drained)
            assert (await client.stub.say("after")).value == "after"


async def test_a_channel_is_not_replaced_by_one_that_reaches_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tally_client.rpc.rotation.READY_S", 0.5)
    authority = Authority()
    async with pair(tmp_path, authority) as two:
        old = two.channel.current
        write_trusted(two.client, Authority())

        async def noted() -> bool:
            return bool(two.channel._problem)

        await until(noted)
        assert two.channel.current is old
        await two.callers.call("still")
    assert two.callers.failed == []
