"""Exchanges with a gateway that is slow, full, away or gone, and callers that go away."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from payment_service.gateway.outcomes import Confirmed, NotSent, Saturated, Unknown
from payment_service.gateway.toss import TossGateway
from tests.integration.gateway.adapters import AWAITS_MAX, adapter, charge, confirmed, paid, pays
from tests.support.gateway_wire import LOST, GatewayWire, Reply, Request, gateway_wire, hang
from tests.support.time_limits import LONG_S

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

    limits = {"connections_max": 30, "connect_timeout_s": 2.0, "breaker_failures": 20}
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
    limits = {"connections_max": 1, "connect_timeout_s": 1.0}
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
    ("place", "outcome", "timeout_s"),
    [
        (refused, NotSent("ClientConnectorError"), LONG_S),
        (nothing_accepted, NotSent("ConnectionTimeoutError"), 1.0),
        (silent_tls, NotSent("ConnectionTimeoutError"), 1.0),
        (no_such_name, NotSent("ClientConnectorDNSError"), LONG_S),
        (no_reply, Unknown("TimeoutError"), 1.0),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_only_what_certainly_never_left_is_not_sent(
    place: Callable[[GatewayWire], Awaitable[str]], outcome: object, timeout_s: float
) -> None:
    async with gateway_wire(pays) as wire:
        url = await place(wire)
        async with adapter(url, timeout_s=timeout_s, breaker_failures=1) as toss:
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
