"""TLS is turned on in a running service: replicas with and without it stand side by side.

The steps are in docs/guides/tls.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from common.rpc.client import ServiceClient
from common.tls import AUTHORITIES
from tally_client.rpc.certificates import Certificates
from tally_client.rpc.channels import open_channel
from tests.integration.common.echo import EchoStub, serving
from tests.support.certificates import NAME, Authority, write_certificate
from tests.support.time_limits import LONG_S

CALLS = 200

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("tls") / "own", Authority())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replicas(own: Path) -> AsyncIterator[tuple[str, str]]:
    """The ports of clients of a replica in plaintext and of one with TLS."""
    async with serving() as (plaintext, _), serving(tls_dir=str(own)) as (encrypted, _):
        yield plaintext, encrypted


@pytest.mark.parametrize("has_tls", [False, True])
async def test_clients_lose_no_call_beside_replicas_of_the_other_kind(
    own: Path, replicas: tuple[str, str], has_tls: bool
) -> None:
    async with client_of(",".join(replicas), certificates(own) if has_tls else None) as client:
        for _ in range(CALLS):
            assert (await client.stub.say("hello", timeout=LONG_S)).value == "hello"


@pytest.mark.parametrize("has_tls", [False, True])
async def test_without_a_replica_of_their_kind_calls_fail(
    own: Path, replicas: tuple[str, str], has_tls: bool
) -> None:
    """The control."""
    plaintext, encrypted = replicas
    other = plaintext if has_tls else encrypted
    async with client_of(other, certificates(own) if has_tls else None) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.say("hello", timeout=2.0)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def client_of(address: str, given: Certificates | None) -> ServiceClient[EchoStub]:
    return ServiceClient(open_channel(address, certificates=given), EchoStub)


def certificates(own: Path) -> Certificates:
    return Certificates(own / AUTHORITIES, server_name=NAME)
