"""Calls to replicas: round robin, deadlines, typed refusals, bounded retries."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from common import deadlines, metrics
from common.addresses import target
from common.errors import Code, DatabaseUnavailable, DeadlineTooShort, Refusal, RemoteRefusal
from common.rpc.client import ServiceClient
from tests.integration.common.echo import Echo, EchoStub, Held, client_of, serving


class Gone(Refusal):
    """It is not there."""

    code = Code.NOT_FOUND
    reason = "GONE"


class Faulty:
    """A ``say`` that raises the given refusals, one per call, and then replies."""

    def __init__(self, *refusals: Refusal, retry_after_s: float | None = None) -> None:
        self.left = list(refusals)
        self.calls = 0
        if retry_after_s is not None:
            for refusal in refusals:
                refusal.retry_after_s = retry_after_s  # type: ignore[misc]

    async def __call__(self, request: StringValue, context: Any) -> StringValue:
        self.calls += 1
        if self.left:
            raise self.left.pop(0)
        return request


async def replicas_seen(client: ServiceClient[EchoStub], calls: int) -> dict[str, int]:
    seen: dict[str, int] = {}
    for _ in range(calls):
        call = client.stub.Say(StringValue(), wait_for_ready=True)
        await call
        name = str(dict(await call.trailing_metadata())["tally-replica"])
        seen[name] = seen.get(name, 0) + 1
    return seen


async def until_seen(client: ServiceClient[EchoStub], names: set[str]) -> None:
    """Call until these replicas, and no other, answered twenty calls in a row."""
    while set(await replicas_seen(client, 20)) != names:  # noqa: ASYNC110 - seen from outside only
        await asyncio.sleep(0.01)


async def test_calls_are_spread_over_the_replicas_in_turn() -> None:
    async with AsyncExitStack() as stack:
        addresses = [
            (await stack.enter_async_context(serving(replica=name)))[0] for name in ("a", "b")
        ]
        client = await stack.enter_async_context(client_of(*addresses))
        await until_seen(client, {"a", "b"})
        assert await replicas_seen(client, 40) == {"a": 20, "b": 20}


async def test_a_replica_that_is_not_ready_gets_no_calls_until_it_is() -> None:
    problem = "its database is gone"

    async def ready() -> None:
        if problem:
            raise RuntimeError(problem)

    async with (
        serving(replica="well") as (well, _),
        serving(replica="ill", ready=ready) as (ill, _),
        client_of(well, ill) as client,
    ):
        assert await replicas_seen(client, 40) == {"well": 40}
        problem = ""
        await until_seen(client, {"well", "ill"})
        problem = "gone again"
        await until_seen(client, {"well"})


async def test_a_refusal_arrives_with_its_reason_and_is_not_retried() -> None:
    faulty = Faulty(Gone(id="7"))
    async with serving(Echo(faulty)) as (address, _), client_of(address) as client:
        with pytest.raises(RemoteRefusal) as caught:
            await client.call(client.stub.Say, StringValue(), limit_s=5.0)
    refusal = caught.value
    assert (refusal.code, refusal.reason) == (Code.NOT_FOUND, "GONE")
    assert refusal.metadata == {"id": "7"}
    assert faulty.calls == 1


async def test_a_retryable_refusal_is_retried_and_counted() -> None:
    faulty = Faulty(DatabaseUnavailable(), DatabaseUnavailable(), retry_after_s=0.01)
    before = metrics.RETRIES.labels("StringValue", "UNAVAILABLE")._value.get()
    async with serving(Echo(faulty)) as (address, _), client_of(address) as client:
        response = await client.call(client.stub.Say, StringValue(value="there"), limit_s=5.0)
    assert response.value == "there"
    assert faulty.calls == 3
    assert metrics.RETRIES.labels("StringValue", "UNAVAILABLE")._value.get() == before + 2


@pytest.mark.parametrize("attempts", [1, 3])
async def test_attempts_are_bounded_and_the_last_refusal_is_raised(attempts: int) -> None:
    refusals = [DatabaseUnavailable(number=str(number)) for number in range(1, 9)]
    faulty = Faulty(*refusals, retry_after_s=0.01)
    async with serving(Echo(faulty)) as (address, _), client_of(address) as client:
        with pytest.raises(RemoteRefusal) as caught:
            await client.call(client.stub.Say, StringValue(), limit_s=5.0, attempts_max=attempts)
    assert caught.value.metadata == {"number": str(attempts)}
    assert faulty.calls == attempts


async def test_the_called_service_gets_the_shorter_of_limit_and_deadline() -> None:
    seen: list[float] = []

    async def say(request: StringValue, context: Any) -> StringValue:
        seen.append(context.time_remaining())
        return request

    async with serving(Echo(say)) as (address, _), client_of(address) as client:
        for deadline_s, limit_s in ((20.0, 100.0), (100.0, 20.0), (None, 50.0)):
            with deadlines.within(deadline_s):
                await client.call(client.stub.Say, StringValue(), limit_s=limit_s)
    assert [round(left_s, -1) for left_s in seen] == [20.0, 20.0, 50.0]


async def test_nothing_is_sent_when_no_time_is_left() -> None:
    faulty = Faulty()
    async with serving(Echo(faulty)) as (address, _), client_of(address) as client:
        with deadlines.within(0.0), pytest.raises(DeadlineTooShort):
            await client.call(client.stub.Say, StringValue(), limit_s=5.0)
    assert faulty.calls == 0


async def test_an_unreachable_service_is_a_refusal_without_reason() -> None:
    async with serving() as (address, _):
        pass
    async with client_of(address) as client:
        with pytest.raises(RemoteRefusal) as caught:
            await client.call(client.stub.Say, StringValue(), limit_s=5.0, attempts_max=2)
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "")


async def test_a_cancelled_caller_cancels_the_call_on_the_other_side() -> None:
    held = Held()
    async with serving(held.echo) as (address, _), client_of(address) as client:
        calling = asyncio.create_task(client.call(client.stub.Say, StringValue(), limit_s=50.0))
        await held.begun.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await held.ended.wait()


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ("127.0.0.1:1", "ipv4:127.0.0.1:1"),
        ("127.0.0.1:1, 127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("localhost:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
        ("balance:50051", "dns:///balance:50051"),
        *(
            (uri, uri)
            for uri in (
                *("dns:///balance:50051", "dns:balance:50051", "dns://10.0.0.10:53/balance:50051"),
                *("ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:1", "unix:/run/balance.sock"),
            )
        ),
    ],
)
def test_addresses_become_a_target(addresses: str, expected: str) -> None:
    assert target(addresses) == expected


@pytest.mark.parametrize(
    "addresses",
    [
        *("", "a:1,b:2", "a", "127.0.0.1:1,[::1]:1", "a:99999"),
        *("http://balance:50051", "https:balance:50051", "balance://x", "xds:///balance:50051"),
        *("dns://balance:50051", "dns:///balance", "dns:///", "dns:"),
        *("ipv4:balance:1", "ipv4:[::1]:1", "ipv6:127.0.0.1:1", "ipv4:", "unix:", "unix://"),
    ],
)
def test_malformed_addresses_are_refused(addresses: str) -> None:
    with pytest.raises(ValueError, match="must"):
        target(addresses)
