"""Exchanges with a gateway that is slow, full, away or gone, and callers that go away."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from common.money import Money
from payment_service.gateway import exchange
from payment_service.gateway.outcomes import Charge, Confirmed, NotSent, Saturated, Unknown
from payment_service.gateway.toss import TossGateway, TossOptions
from tests.support.gateway_wire import LOST, GatewayWire, Reply, Request, gateway_wire, hang, reply
from tests.support.time_limits import LONG_S

AWAITS_MAX = 100
"""More than any exchange has."""


def charge(number: object) -> Charge:
    return Charge(f"key-{number}", "order-1", Money("KRW", 15_000), f"confirmation-{number}")


def paid(request: Request) -> Reply:
    """What a gateway returns to a confirm."""
    return reply(
        200,
        {
            "paymentKey": request.json["paymentKey"],
            "orderId": "order-1",
            "status": "DONE",
            "currency": "KRW",
            "totalAmount": 15_000,
            "balanceAmount": 15_000,
            "lastTransactionKey": "transaction-1",
        },
    )


async def pays(request: Request) -> Reply:
    await asyncio.sleep(0)
    return paid(request)


@asynccontextmanager
async def adapter(url: str, **options: Any) -> AsyncIterator[TossGateway]:
    limits = {"timeout_s": LONG_S, "connect_timeout_s": LONG_S, **options}
    toss = TossGateway(TossOptions(url, SecretStr("secret"), **limits))
    try:
        yield toss
    finally:
        await toss.aclose()


async def confirmed(toss: TossGateway, count: int) -> Counter[type]:
    """The outcomes of as many confirms at once."""
    numbers = range(count)
    return Counter(map(type, await asyncio.gather(*(toss.confirm(charge(n)) for n in numbers))))


# -- callers that go away ------------------------------------------------------------------------


class CancelledAt:
    """Awaits a coroutine, which is cancelled at its n-th await.

    ``late``: at the moment when what it waits for has come.
    """

    def __init__(self, work: Coroutine[Any, Any, object], step: int, *, late: bool) -> None:
        self._work, self._step, self._late = work.__await__(), step, late

    def __await__(self) -> Generator[Any, None, object]:
        steps, error = 0, None
        task = asyncio.current_task()
        assert task is not None
        while True:
            try:
                awaited = self._work.send(None) if error is None else self._work.throw(error)
            except StopIteration as ended:
                return ended.value
            error, steps = None, steps + 1
            if steps == self._step and not self._late:
                task.cancel()
            try:
                yield awaited
            except BaseException as thrown:  # noqa: BLE001 - passed on to the coroutine
                error = thrown
            if steps == self._step and self._late:
                error = asyncio.CancelledError()


async def cancelled_at(step: int, work: Coroutine[Any, Any, object], *, late: bool) -> bool:
    """Whether ``work`` was cancelled there; it has fewer awaits otherwise."""

    async def run() -> object:
        return await CancelledAt(work, step, late=late)

    task = asyncio.create_task(run())
    await asyncio.wait({task})
    return task.cancelled()


@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "when it has come"])
@pytest.mark.parametrize("place", ["new connection", "used connection", "waiting for a slot"])
async def test_a_call_cancelled_at_any_await_keeps_no_slot(place: str, late: bool) -> None:
    async with gateway_wire(pays) as wire:
        for step in range(1, AWAITS_MAX):
            async with adapter(wire.url, connections_max=1) as toss:
                if place == "used connection":
                    assert type(await toss.confirm(charge("before"))) is Confirmed
                others = []
                if place == "waiting for a slot":
                    others.append(asyncio.create_task(toss.confirm(charge("before"))))
                    await asyncio.sleep(0)
                cancelled = await cancelled_at(step, toss.confirm(charge(step)), late=late)
                async with asyncio.timeout(LONG_S):
                    assert await confirmed(toss, 2) == {Confirmed: 2}, step
                await asyncio.gather(*others)
            if not cancelled:
                break
    assert 1 < step < AWAITS_MAX - 1


@pytest.mark.parametrize("slots", [10, 200])
async def test_every_payment_works_after_a_burst_with_time_limits(slots: int) -> None:
    slow_s = 0.03

    async def slow(request: Request) -> Reply:
        await asyncio.sleep(slow_s)
        return paid(request)

    async def hurried(toss: TossGateway, number: int) -> None:
        try:
            async with asyncio.timeout(slow_s * 3 * (number % 29) / 29):
                await toss.confirm(charge(number))
        except TimeoutError:
            pass

    async with gateway_wire(slow) as wire, adapter(wire.url, connections_max=slots) as toss:
        await asyncio.gather(*(hurried(toss, number) for number in range(2 * slots)))
        wire.answer = pays
        assert await confirmed(toss, slots + 1) == {Confirmed: slots + 1}
        assert wire.open <= slots


# -- full, slow and away -------------------------------------------------------------------------


async def test_a_call_that_gets_no_slot_is_no_failure_of_the_gateway() -> None:
    """Twice as many payments as slots, and a gateway that takes longer than they may wait."""
    release = asyncio.Event()

    async def held(request: Request) -> Reply:
        await release.wait()
        return paid(request)

    limits = {"connections_max": 30, "connect_timeout_s": 0.6, "breaker_failures": 20}
    async with gateway_wire(held) as wire, adapter(wire.url, **limits) as toss:
        calls = [asyncio.create_task(toss.confirm(charge(number))) for number in range(60)]
        async with asyncio.timeout(LONG_S):
            while sum(call.done() for call in calls) < 30:
                await asyncio.wait(calls, timeout=0.05)
        release.set()
        outcomes = Counter(map(type, await asyncio.gather(*calls)))
        assert outcomes == {Confirmed: 30, Saturated: 30}
        assert wire.open_max == len(wire.requests) == 30
        assert not toss.refuses_confirms
        assert type(await toss.confirm(charge("next"))) is Confirmed


async def test_a_trial_that_gets_no_slot_leaves_the_trial_to_the_next_call() -> None:
    limits = {"connections_max": 1, "connect_timeout_s": 0.05}
    breaker = {"breaker_failures": 1, "breaker_pause_s": 0.05}

    async def answer(request: Request) -> Reply:
        return await (hang if request.method == "GET" else lost)(request)

    async def lost(request: Request) -> Reply:
        return LOST

    async with gateway_wire(answer) as wire, adapter(wire.url, **limits, **breaker) as toss:
        assert isinstance(await toss.confirm(charge(1)), Unknown)
        assert toss.refuses_confirms
        lookup = asyncio.create_task(toss.find(charge(1)))
        while toss.refuses_confirms:  # noqa: ASYNC110 - time alone ends it
            await asyncio.sleep(0.01)
        assert await toss.confirm(charge(2)) == Saturated()
        wire.answer = pays
        lookup.cancel()
        await asyncio.wait({lookup})
        assert type(await toss.confirm(charge(3))) is Confirmed


async def no_reply(wire: GatewayWire) -> str:
    wire.answer = hang
    return wire.url


async def refused(wire: GatewayWire) -> str:
    wire.stop()
    return wire.url


async def nothing_accepted(wire: GatewayWire) -> str:
    """The address of a host that drops packets: its backlog is full."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=0)
    filler = [socket.socket() for _ in range(4)]
    for each in filler:
        each.setblocking(False)
        each.connect_ex(listening.getsockname())
    SOCKETS.extend([listening, *filler])
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


async def silent_tls(wire: GatewayWire) -> str:
    """It accepts connections and never says a word of TLS."""
    wire.answer = hang
    return wire.url.replace("http:", "https:")


async def no_such_name(wire: GatewayWire) -> str:
    return "http://gateway.invalid"


SOCKETS: list[socket.socket] = []


@pytest.fixture(autouse=True)
def close_sockets() -> Generator[None, None, None]:
    yield
    while SOCKETS:
        SOCKETS.pop().close()


@pytest.mark.parametrize(
    ("place", "outcome"),
    [
        (refused, NotSent("ClientConnectorError")),
        (nothing_accepted, NotSent("ConnectionTimeoutError")),
        (silent_tls, NotSent("ConnectionTimeoutError")),
        (no_such_name, NotSent("ClientConnectorDNSError")),
        (no_reply, Unknown("TimeoutError")),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_only_what_certainly_never_left_is_not_sent(
    place: Callable[[GatewayWire], Awaitable[str]], outcome: object
) -> None:
    async with gateway_wire(pays) as wire:
        url = await place(wire)
        async with adapter(url, timeout_s=0.3, breaker_failures=1) as toss:
            assert await toss.confirm(charge(1)) == outcome
            # Each of them is the gateway's own failure.
            assert toss.refuses_confirms


async def test_a_silent_name_server_delays_no_call_and_heals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, asked = threading.Event(), 0
    look_up = socket.getaddrinfo

    def slow_look_up(host: Any, *args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        answers.wait(LONG_S)
        return look_up("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow_look_up)
    async with gateway_wire(pays) as wire:
        url = wire.url.replace("127.0.0.1", "gateway.test")
        limits = {"timeout_s": 0.3, "breaker_failures": 1_000, "connections_max": 50}
        async with adapter(url, **limits) as toss:
            try:
                outcomes = await asyncio.gather(*(toss.confirm(charge(n)) for n in range(50)))
                assert set(outcomes) == {NotSent("ConnectionTimeoutError")}
                # One thread waits, not fifty: the pool of threads is everybody's.
                assert asked == 1
            finally:
                answers.set()
            async with asyncio.timeout(LONG_S):
                number = itertools.count()
                while type(await toss.confirm(charge(next(number)))) is not Confirmed:
                    pass


# -- connections ---------------------------------------------------------------------------------


async def test_connections_are_used_again_until_they_idle_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "_IDLE_S_MAX", 0.2)
    async with gateway_wire(pays) as wire, adapter(wire.url) as toss:
        for number in range(5):
            assert type(await toss.confirm(charge(number))) is Confirmed
        assert wire.connections == 1
        await wire.until_open(0)
        assert type(await toss.confirm(charge("after"))) is Confirmed
        assert wire.connections == 2


UNASKED = {
    "an error": reply(400, {"code": "REJECT_CARD_PAYMENT", "message": "Another card's."}),
    "a time limit": reply(408, {"code": "REQUEST_TIMEOUT", "message": "Nothing was sent."}),
    "no http": Reply(b"BYE"),
}


@pytest.mark.parametrize("unasked", UNASKED)
async def test_what_came_on_an_idle_connection_answers_no_request(unasked: str) -> None:
    """An error does not name the payment that it is about."""
    async with gateway_wire(pays) as wire, adapter(wire.url) as toss:
        assert type(await toss.confirm(charge(1))) is Confirmed
        wire.send(UNASKED[unasked])
        for _ in range(AWAITS_MAX):  # until the library has read it
            await asyncio.sleep(0)
        assert type(await toss.confirm(charge(2))) is Confirmed
        assert len(wire.requests) == 2


@pytest.mark.parametrize("operation", ["confirm", "find", "cancel"])
async def test_no_request_is_sent_twice(operation: str) -> None:
    """The library alone repeats a GET on a connection that the server closed."""

    async def lost(request: Request) -> Reply:
        return LOST

    async with gateway_wire(pays) as wire, adapter(wire.url) as toss:
        assert type(await toss.confirm(charge(1))) is Confirmed
        wire.answer = lost
        arguments = [charge(2), "reason"][: 2 if operation == "cancel" else 1]
        assert isinstance(await getattr(toss, operation)(*arguments), Unknown)
        assert len(wire.requests) == 2


async def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with gateway_wire(pays) as wire, adapter(wire.url) as toss:
        assert type(await toss.confirm(charge(1))) is Confirmed


# -- certificates --------------------------------------------------------------------------------


class Authority:
    """A certificate authority, and what it signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.file = self.folder / "ca.pem"
        made = ["-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
        self.made = made
        self._openssl(
            "req", "-x509", *made, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=c"
        )

    def server(self, name: str) -> ssl.SSLContext:
        """A server's TLS with a new certificate for ``name``."""
        named = ["-subj", "/CN=gateway", "-addext", f"subjectAltName={name}"]
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key"]
        files = ["-keyout", "server.key", "-out", "server.pem"]
        self._openssl("req", "-x509", *self.made, *files, *named, *signed)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        return context

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
async def test_only_a_trusted_certificate_for_the_name_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, other = Authority(tmp_path, "trusted"), Authority(tmp_path, "other")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted.file))
    async with gateway_wire(pays, tls=trusted.server("IP:127.0.0.1")) as wire:
        port = int(wire.url.rpartition(":")[2])
        async with adapter(wire.url) as toss:
            assert type(await toss.confirm(charge(1))) is Confirmed
            # The gateway restarts with another certificate.
            wire.stop()
            wire.drop_connections()
            await wire.until_open(0)
            for authority, name, outcome in [
                (other, "IP:127.0.0.1", NotSent("ClientConnectorCertificateError")),
                (trusted, "DNS:other.test", NotSent("ClientConnectorCertificateError")),
                (trusted, "IP:127.0.0.1", Confirmed("transaction-1", charge(2).amount)),
            ]:
                async with gateway_wire(pays, port=port, tls=authority.server(name)):
                    assert await toss.confirm(charge(2)) == outcome
