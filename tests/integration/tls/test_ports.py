"""The three ports of a server: whom each admits, and what it serves."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from common.environment import SettingsError
from common.errors import Code
from common.rpc import probe
from common.rpc.client import ServiceClient
from common.rpc.server import GrpcServer
from common.tls import AUTHORITIES, CERTIFICATE
from tally_client.rpc.certificates import Certificates
from tally_client.rpc.channels import open_channel
from tests.integration.common.echo import EchoStub, Held, always_ready, serving, settings
from tests.support.certificates import (
    HOST,
    STRANGER,
    Authority,
    certificates_in,
    trusting,
    write_certificate,
    write_trusted,
)
from tests.support.payments import until
from tests.support.refusals import refused
from tests.support.time_limits import LONG_S

REFUSED_S = 2.0
"""How long a call may try that can never succeed."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Ports:
    """A server with three ports, and directories of certificates."""

    clients: str
    peers: str
    probes: str
    own: Path
    """Of the server's authority, and trusting it."""
    foreign: Path
    """Of another authority, and trusting the server's."""
    distrusting: Path
    """Of the server's authority, and trusting another."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ports(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ports]:
    folder = tmp_path_factory.mktemp("tls")
    right, wrong = Authority(), Authority()
    own = write_certificate(folder / "own", right)
    foreign = write_certificate(folder / "foreign", wrong, right)
    distrusting = write_certificate(folder / "distrusting", right, wrong)
    async with serving(
        tls_dir=str(own),
        peer_tls_dir=str(own),
        peer_bind=f"{HOST}:0",
        probe_bind=f"{HOST}:0",
    ) as (_, server):
        found = {name: f"{HOST}:{port}" for name, port in server.ports.items()}
        yield Ports(
            found["bind"], found["peer_bind"], found["probe_bind"], own, foreign, distrusting
        )


@asynccontextmanager
async def client_of(
    address: str, certificates: Certificates | None
) -> AsyncIterator[ServiceClient[EchoStub]]:
    channel = open_channel(address, certificates=certificates)
    async with ServiceClient(channel, EchoStub) as client:
        yield client


async def refusal_at(address: str, certificates: Certificates | None) -> str:
    """Why the client has no connection, as gRPC tells it."""
    async with client_of(address, certificates) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.say(timeout=REFUSED_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        return caught.value.details() or ""


async def test_a_client_needs_no_certificate_and_a_peer_does(ports: Ports) -> None:
    """The control of the refusals."""
    for address, certificates in (
        (ports.clients, trusting(ports.own)),
        (ports.peers, certificates_in(ports.own)),
    ):
        async with client_of(address, certificates) as client:
            reply = await client.stub.say("hello", timeout=LONG_S)
            assert reply.value == "hello"
            assert await client.stub.check() == 1


@pytest.mark.parametrize(
    ("port", "given", "says"),
    [
        ("clients", None, ""),
        ("peers", None, ""),
        ("clients", "distrusting", "CERTIFICATE_VERIFY_FAILED"),
        ("peers", "distrusting", "CERTIFICATE_VERIFY_FAILED"),
        ("peers", "no certificate", ""),
        ("peers", "foreign", ""),
        ("clients", "another name", "Hostname Verification Check failed"),
        ("probes", "own", "WRONG_VERSION_NUMBER"),
    ],
)
async def test_a_connection_is_refused(
    ports: Ports, port: str, given: str | None, says: str
) -> None:
    certificates = {
        None: None,
        "no certificate": trusting(ports.own),
        "own": trusting(ports.own),
        "another name": Certificates(ports.own / AUTHORITIES, server_name="other.test"),
        "foreign": certificates_in(ports.foreign),
        "distrusting": certificates_in(ports.distrusting),
    }[given]
    assert says in await refusal_at(getattr(ports, port), certificates)


async def test_the_log_has_what_is_wrong_with_the_other_side_once(ports: Ports) -> None:
    with capture_logs() as logged:
        async with client_of(ports.clients, trusting(ports.distrusting)) as client:
            for _ in range(2):
                with refused("") as ended:
                    await client.call(
                        client.stub.Say,
                        StringValue(),
                        limit_s=REFUSED_S,
                        attempts_max=1,
                    )
    assert ended.refusal.code is Code.UNAVAILABLE
    [line] = [line for line in logged if line["event"] == "peer_not_trusted"]
    assert "CERTIFICATE_VERIFY_FAILED" in line["reason"]


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_1_2_is_the_oldest(ports: Ports, version: ssl.TLSVersion, accepted: bool) -> None:
    context = ssl.create_default_context(cafile=str(ports.own / AUTHORITIES))
    # Otherwise this side would not offer the old versions.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    host, port = ports.clients.split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    except (ssl.SSLError, ConnectionResetError):
        assert not accepted
        return
    assert accepted
    assert writer.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
    writer.close()


async def test_the_port_of_probes_serves_health_and_nothing_else(ports: Ports) -> None:
    for service in ("", "liveness"):
        assert await asyncio.to_thread(probe.status_of, ports.probes, service) == "SERVING"
    async with client_of(ports.probes, None) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.say(timeout=LONG_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_probes_are_answered_while_calls_end() -> None:
    """The kubelet would otherwise find a replica dead that only drains."""
    held = Held()
    async with (
        serving(held, probe_bind=f"{HOST}:0", grace_s=LONG_S) as (address, server),
        client_of(address, None) as client,
    ):
        call = asyncio.ensure_future(client.stub.say(timeout=LONG_S))
        await held.begun.wait()
        draining = asyncio.create_task(server.drain())
        probes = f"{HOST}:{server.ports['probe_bind']}"

        async def readiness() -> str:
            return await asyncio.to_thread(probe.status_of, probes)

        await until(readiness, lambda status: status == "NOT_SERVING")
        assert await asyncio.to_thread(probe.status_of, probes, "liveness") == "SERVING"
        held.release.set()
        await draining
        await call


@pytest.mark.parametrize("setting", ["tls_dir", "peer_tls_dir"])
async def test_a_server_without_its_certificate_does_not_start(
    setting: str, tmp_path: Path
) -> None:
    directory = tmp_path / "own"
    write_certificate(directory, Authority())
    (directory / CERTIFICATE).unlink()
    other = {"peer_bind": f"{HOST}:0", "peer_tls_dir": "/absent"}
    given = settings(**{**other, setting: str(directory)})
    with pytest.raises(SettingsError, match=rf"TALLY_ECHO_{setting.upper()}: tls.crt: cannot be"):
        GrpcServer(given, ready=always_ready)


async def test_a_peer_whose_authority_was_removed_has_no_new_connection(tmp_path: Path) -> None:
    """One that is open goes on, until it is as old as a connection may be."""
    old, new = Authority(), Authority()
    server_dir = write_certificate(tmp_path / "server", new, old, new)
    peer = write_certificate(tmp_path / "peer", old, new, uris=[STRANGER])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.certificates.REFRESH_S", 0.05)
        async with (
            serving(peer_tls_dir=str(server_dir), peer_bind=f"{HOST}:0") as (_, server),
            client_of(f"{HOST}:{server.ports['peer_bind']}", certificates_in(peer)) as client,
        ):
            await client.stub.say(timeout=LONG_S)
            with capture_logs() as logged:
                write_trusted(server_dir, new)

                async def read_again() -> bool:
                    return "certificate_read" in str(logged)

                await until(read_again)
            await client.stub.say(timeout=LONG_S)
            address = f"{HOST}:{server.ports['peer_bind']}"
            await refusal_at(address, certificates_in(peer))


async def test_an_old_connection_ends_with_its_age(tmp_path: Path) -> None:
    old, new = Authority(), Authority()
    server_dir = write_certificate(tmp_path / "server", new, old, new)
    peer = write_certificate(tmp_path / "peer", old, new)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.certificates.REFRESH_S", 0.05)
        async with (
            serving(
                peer_tls_dir=str(server_dir), peer_bind=f"{HOST}:0", max_connection_age_s=1.0
            ) as (_, server),
            client_of(f"{HOST}:{server.ports['peer_bind']}", certificates_in(peer)) as client,
        ):
            await client.stub.say(timeout=LONG_S)
            write_trusted(server_dir, new)
            async with asyncio.timeout(LONG_S):
                with pytest.raises(grpc.aio.AioRpcError):
                    while True:
                        await client.stub.say(timeout=REFUSED_S)
                        await asyncio.sleep(0.05)
