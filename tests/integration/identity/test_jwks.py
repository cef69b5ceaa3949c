"""Keys from a URL: which answers are taken, and that the last good keys outlive the others."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import trustme
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.identity import jwks
from common.identity.errors import TokenInvalid
from common.identity.jwks import BYTES_MAX, Jwks, Unreadable
from common.identity.keys import parse_keys
from common.identity.tokens import TokenVerifier
from common.rpc.server import GrpcServer
from deploy.local.identities import AUDIENCE, ISSUER, ROLE, Issuer
from tests.integration.common.echo import (
    NOT_SERVING,
    SERVING,
    EchoStub,
    always_ready,
    settings,
)
from tests.support.payments import until
from tests.support.tokens import with_header

PATH: Final = "/keys"
ELSEWHERE: Final = "/elsewhere"
CHUNK: Final = b"x" * 65_536

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class KeyServer:
    """The issuer's web server, over TLS; what it answers is the test's to say."""

    issuer: Issuer
    answer: Answer
    url: str = ""
    paths: list[str] = field(default_factory=list)
    """Of each request."""
    sent: int = 0
    """Bytes of an endless answer."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        return await (good if request.path == ELSEWHERE else self.answer)(request)


SERVER: Final = web.AppKey("server", KeyServer)


async def good(request: web.Request) -> web.StreamResponse:
    return web.Response(text=request.app[SERVER].issuer.jwks())


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """A CA that this process trusts."""
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


@pytest.fixture
async def server(authority: trustme.CA) -> AsyncIterator[KeyServer]:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    made = KeyServer(Issuer(Ed25519PrivateKey.generate()), good)
    app = web.Application()
    app[SERVER] = made
    app.router.add_get("/{path}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    made.url = f"https://localhost:{port}{PATH}"
    yield made
    await runner.cleanup()


@pytest.fixture
def verifier() -> TokenVerifier:
    return TokenVerifier(
        issuer=ISSUER, audience=AUDIENCE, leeway_s=10, role_claim=ROLE, saga_service="order"
    )


def accepted(verifier: TokenVerifier, token: str) -> bool:
    try:
        return verifier.caller_of(token, lambda: "ipv4:10.0.0.7:1").subject == "ann"
    except TokenInvalid:
        return False


# -- answers that have no keys ---------------------------------------------------------------------


def status(code: int, **options: Any) -> Answer:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=code, **options)

    return answer


def body(text: str) -> Answer:
    return status(200, text=text, content_type="text/html")


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(100 * BYTES_MAX // len(CHUNK)):
        if request.transport is None or request.transport.is_closing():
            break
        await response.write(CHUNK)
        request.app[SERVER].sent += len(CHUNK)
        await asyncio.sleep(0)
    return response


async def bomb(_request: web.Request) -> web.StreamResponse:
    zipped = gzip.compress(b" " * 200 * BYTES_MAX)
    return web.Response(body=zipped, headers={"Content-Encoding": "gzip"})


async def cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"keys": [')
    return hung_up(request)


async def closed(request: web.Request) -> web.StreamResponse:
    return hung_up(request)


def hung_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def silent(_request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


BAD: Final[dict[str, tuple[Answer, str]]] = {
    "not there": (status(404), "HTTP status 404"),
    "broken": (status(500, text='{"keys": []}'), "HTTP status 500"),
    "without a body": (status(204), "HTTP status 204"),
    "moved": (status(302, headers={"Location": ELSEWHERE}), "HTTP status 302"),
    "moved for good": (status(308, headers={"Location": ELSEWHERE}), "HTTP status 308"),
    "a page": (body("<html><title>Sign in</title></html>"), "is not a JWKS"),
    "empty": (body(""), "is not a JWKS"),
    "without keys": (body('{"keys": []}'), "has no public key"),
    "endless": (endless, f"is larger than {BYTES_MAX} bytes"),
    "a gzip bomb": (bomb, f"is larger than {BYTES_MAX} bytes"),
    "cut off": (cut_off, "does not answer (ClientPayloadError)"),
    "hung up": (closed, "does not answer (ServerDisconnectedError)"),
    "silent": (silent, "does not answer (TimeoutError)"),
}


@pytest.mark.parametrize("answer", BAD)
async def test_the_last_good_keys_outlive_an_answer_without_keys(
    server: KeyServer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    followed = Jwks(server.url, verifier)
    await followed.read()
    monkeypatch.setattr(jwks, "FETCH_S", 2.0 if answer == "silent" else 60.0)
    server.answer, problem = BAD[answer]
    with pytest.raises(Unreadable) as caught:
        await followed.read()
    assert problem in str(caught.value)
    assert server.url not in str(caught.value)
    assert followed.problem == str(caught.value)
    assert accepted(verifier, server.issuer.token("ann"))
    assert {*server.paths} == {PATH}, "a redirect is not followed"
    assert server.sent < 50 * BYTES_MAX, "what is too large is not read to its end"

    server.issuer, server.answer = Issuer(Ed25519PrivateKey.generate(), "next"), good
    await followed.read()
    assert followed.problem == ""
    assert accepted(verifier, server.issuer.token("ann"))


async def test_a_server_of_another_authority_is_not_believed(
    server: KeyServer, verifier: TokenVerifier, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with pytest.raises(Unreadable, match="ClientConnectorCertificateError"):
        await Jwks(server.url, verifier).read()
    assert not verifier.has_keys
    assert server.paths == []


# -- when they are read ----------------------------------------------------------------------------


async def test_keys_are_read_at_most_once_in_30_s(
    server: KeyServer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a bad answer or an unexpected error; a token with an unknown key reads none."""
    followed = Jwks(server.url, verifier)
    await followed.read()
    for number in range(100):
        assert not accepted(verifier, with_header(server.issuer.token("ann"), kid=f"k{number}"))
    assert len(server.paths) == 1

    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(delay_s: float, *result: Any) -> Any:
        if delay_s < 30:
            return await sleep(delay_s, *result)
        pauses.append(delay_s)
        server.answer = status(500) if len(pauses) == 1 else good
        return await sleep(0)

    def parse(text: bytes) -> Any:
        if len(pauses) == 2:
            raise RuntimeError("a bug")
        return parse_keys(text)

    monkeypatch.setattr(jwks, "parse_keys", parse)
    monkeypatch.setattr(asyncio, "sleep", pause)
    following = asyncio.create_task(followed.follow())
    while len(server.paths) < 5:
        await sleep(0.01)
    following.cancel()
    assert len(pauses) >= len(server.paths) - 1


async def test_a_replica_is_not_ready_until_its_keys_were_read(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An issuer that is away later does not make it unready."""
    monkeypatch.setattr(jwks, "REFRESH_S", 0.05)
    server.answer = status(503)
    given = settings(auth="required", auth_issuer=ISSUER, auth_jwks=server.url)
    replica = GrpcServer(given, ready=always_ready)
    port = await replica.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            client = EchoStub(channel)

            async def reads() -> int:
                return len(server.paths)

            before = await until(reads, lambda count: count >= 3)
            assert await client.check() == NOT_SERVING
            server.answer = good
            await client.watch().until(SERVING)
            server.answer = status(503)
            await until(reads, lambda count: count >= before + 4)
            assert await client.check() == SERVING
    finally:
        await replica.drain()
