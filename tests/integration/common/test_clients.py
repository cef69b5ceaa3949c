"""Calls spread over replicas, deadlines carried on, refusals typed, retries bounded."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common import deadlines, metrics
from common.errors import Code, DatabaseUnavailable, DeadlineTooShort, Refusal, RemoteRefusal
from common.rpc.channels import open_channel
from common.rpc.client import ServiceClient
from tests.integration.common.echo import Echo, EchoStub, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Gone(Refusal):
    """It is not there."""

    code = Code.NOT_FOUND
    reason = "GONE"


class Faulty:
    """Refuses a number of calls with the given refusals, then answers."""

    def __init__(self, *refusals: Refusal) -> None:
        self.left = list(refusals)
        self.calls = 0

    async def __call__(self, request: StringValue, context: Any) -> StringValue:
        self.calls += 1
        if self.left:
            raise self.left.pop(0)
        return request


@asynccontextmanager
async def peer_of(*addresses: str) -> AsyncIterator[ServiceClient[EchoStub]]:
    async with ServiceClient(open_channel(",".join(addresses)), EchoStub) as peer:
        yield peer


async def replicas_seen(peer: ServiceClient[EchoStub], calls: int) -> dict[str, int]:
    seen: dict[str, int] = {}
    for _ in range(calls):
        call = peer.stub.Say(StringValue(), wait_for_ready=True)
        await call
        name = str(dict(await call.trailing_metadata())["tally-replica"])
        seen[name] = seen.get(name, 0) + 1
    return seen


async def until_seen(peer: ServiceClient[EchoStub], names: set[str]) -> None:
    """Calls until each of these replicas, and no other, was seen in twenty calls in a row."""
    while set(await replicas_seen(peer, 20)) != names:  # noqa: ASYNC110 - seen from outside only
        await asyncio.sleep(0.01)


async def test_calls_take_turns_over_the_replicas() -> None:
    async with AsyncExitStack() as stack:
        addresses = [
            (await stack.enter_async_context(serving(replica=name)))[0] for name in ("a", "b")
        ]
        peer = await stack.enter_async_context(peer_of(*addresses))
        await until_seen(peer, {"a", "b"})
        assert await replicas_seen(peer, 40) == {"a": 20, "b": 20}


async def test_a_replica_that_is_not_ready_gets_no_calls_until_it_is() -> None:
    reason = "its database is gone"

    async def ready() -> None:
        if reason:
            raise RuntimeError(reason)

    async with (
        serving(replica="well") as (well, _),
        serving(replica="ill", ready=ready) as (ill, _),
        peer_of(well, ill) as peer,
    ):
        assert await replicas_seen(peer, 40) == {"well": 40}
        reason = ""
        await until_seen(peer, {"well", "ill"})
        reason = "gone again"
        await until_seen(peer, {"well"})


async def test_a_refusal_arrives_with_its_reason_and_is_not_repeated() -> None:
    faulty = Faulty(Gone(id="7"))
    async with serving(Echo(faulty)) as (address, _), peer_of(address) as peer:
        with pytest.raises(RemoteRefusal) as caught:
            await peer.call(peer.stub.Say, StringValue(), limit_s=5.0)
    refusal = caught.value
    assert (refusal.code, refusal.reason) == (Code.NOT_FOUND, "GONE")
    assert refusal.metadata == {"id": "7"}
    assert faulty.calls == 1


async def test_a_refusal_that_may_pass_is_met_with_further_attempts() -> None:
    faulty = Faulty(DatabaseUnavailable(), DatabaseUnavailable())
    for refusal in faulty.left:
        refusal.retry_after_s = 0.01  # type: ignore[misc]
    before = metrics.RETRIES.labels("StringValue", "UNAVAILABLE")._value.get()
    async with serving(Echo(faulty)) as (address, _), peer_of(address) as peer:
        answer = await peer.call(peer.stub.Say, StringValue(value="there"), limit_s=5.0)
    assert answer.value == "there"
    assert faulty.calls == 3
    assert metrics.RETRIES.labels("StringValue", "UNAVAILABLE")._value.get() == before + 2


async def test_attempts_are_bounded_and_the_last_refusal_is_told() -> None:
    refusals = [DatabaseUnavailable(try_number=str(number)) for number in range(9)]
    for refusal in refusals:
        refusal.retry_after_s = 0.01  # type: ignore[misc]
    faulty = Faulty(*refusals)
    async with serving(Echo(faulty)) as (address, _), peer_of(address) as peer:
        with pytest.raises(RemoteRefusal) as caught:
            await peer.call(peer.stub.Say, StringValue(), limit_s=5.0, attempts_max=3)
    assert caught.value.metadata == {"try_number": "2"}
    assert faulty.calls == 3


async def test_what_must_not_be_repeated_is_not() -> None:
    faulty = Faulty(DatabaseUnavailable())
    async with serving(Echo(faulty)) as (address, _), peer_of(address) as peer:
        with pytest.raises(RemoteRefusal):
            await peer.call(peer.stub.Say, StringValue(), limit_s=5.0, repeat=False)
    assert faulty.calls == 1


async def test_no_wait_is_begun_that_the_deadline_does_not_allow() -> None:
    patience = DatabaseUnavailable()
    patience.retry_after_s = 100.0  # type: ignore[misc]
    faulty = Faulty(patience)
    async with serving(Echo(faulty)) as (address, _), peer_of(address) as peer:
        await until_answered(address)
        with deadlines.within(25.0), pytest.raises(RemoteRefusal) as caught:
            await peer.call(peer.stub.Say, StringValue(value="once"), limit_s=20.0)
    assert caught.value.reason == "DATABASE_UNAVAILABLE"
    assert faulty.calls == 1


async def until_answered(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()


async def test_the_deadline_is_carried_on_and_is_the_shorter_of_both() -> None:
    seen: list[float] = []

    async def say(request: StringValue, context: Any) -> StringValue:
        seen.append(context.time_remaining())
        return request

    async with serving(Echo(say)) as (address, _), peer_of(address) as peer:
        with deadlines.within(20.0):
            await peer.call(peer.stub.Say, StringValue(), limit_s=100.0)
        with deadlines.within(100.0):
            await peer.call(peer.stub.Say, StringValue(), limit_s=20.0)
        await peer.call(peer.stub.Say, StringValue(), limit_s=50.0)
    assert [round(left_s, -1) for left_s in seen] == [20.0, 20.0, 50.0]


async def test_nothing_is_sent_when_no_time_is_left() -> None:
    faulty = Faulty()
    async with serving(Echo(faulty)) as (address, _), peer_of(address) as peer:
        with deadlines.within(0.0), pytest.raises(DeadlineTooShort):
            await peer.call(peer.stub.Say, StringValue(), limit_s=5.0)
    assert faulty.calls == 0


async def test_a_peer_that_is_not_there_is_a_refusal_without_reason() -> None:
    async with serving() as (address, _):
        pass
    async with peer_of(address) as peer:
        with pytest.raises(RemoteRefusal) as caught:
            await peer.call(peer.stub.Say, StringValue(), limit_s=5.0, attempts_max=2)
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "")


async def test_a_call_whose_caller_gives_up_is_cancelled_and_not_repeated() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def say(request: StringValue, context: Any) -> StringValue:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with serving(Echo(say)) as (address, _), peer_of(address) as peer:
        calling = asyncio.create_task(peer.call(peer.stub.Say, StringValue(), limit_s=50.0))
        await begun.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await cancelled.wait()


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ("127.0.0.1:1", "ipv4:127.0.0.1:1"),
        ("127.0.0.1:1, 127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("localhost:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
        ("balance:50051", "dns:///balance:50051"),
        ("dns:///balance:50051", "dns:///balance:50051"),
        ("dns:balance:50051", "dns:balance:50051"),
        ("dns://10.0.0.10:53/balance:50051", "dns://10.0.0.10:53/balance:50051"),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("ipv6:[::1]:1", "ipv6:[::1]:1"),
        ("unix:/run/balance.sock", "unix:/run/balance.sock"),
    ],
)
def test_addresses_become_a_target(addresses: str, expected: str) -> None:
    assert addresses.target(addresses) == expected


@pytest.mark.parametrize(
    "addresses",
    [
        *("", "a:1,b:2", "a", "127.0.0.1:1,[::1]:1", "a:99999"),
        *("http://balance:50051", "https:balance:50051", "balance://x", "xds:///balance:50051"),
        *("dns://balance:50051", "dns:///balance", "dns:///", "dns:"),
        *("ipv4:balance:1", "ipv4:[::1]:1", "ipv6:127.0.0.1:1", "ipv4:", "unix:", "unix://"),
    ],
)
def test_addresses_that_cannot_be_a_target_are_refused(addresses: str) -> None:
    with pytest.raises(ValueError, match="must"):
        addresses.target(addresses)
