"""Callers without retries, and which replicas reply to them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from common.errors import Code
from common.rpc.client import ServiceClient
from common.rpc.status import from_rpc_error
from tests.integration.common.echo import EchoStub
from tests.support.waits import until_true

LIMIT_S = 90.0


class Callers:
    """Callers of one client: who replied, and how calls failed."""

    def __init__(self, client: ServiceClient[EchoStub], count: int = 16) -> None:
        self.answered_by: list[str] = []
        self.failed: list[tuple[Code, str]] = []
        self.client = client
        self._count = count

    async def call(self, value: str = "", *, wait_for_ready: bool = False) -> None:
        call = self.client.stub.say(value, timeout=LIMIT_S, wait_for_ready=wait_for_ready)
        try:
            assert (await call).value == value
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            self.failed.append((refusal.code, refusal.reason))
        else:
            self.answered_by.append(str(dict(await call.trailing_metadata())["tally-replica"]))

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """A block in which ``count`` callers call again and again."""
        over = asyncio.Event()

        async def calls(name: int) -> None:
            number = 0
            while not over.is_set():
                await self.call(f"{name}:{number}")
                number += 1

        async with asyncio.TaskGroup() as tasks:
            for name in range(self._count):
                tasks.create_task(calls(name))
            yield
            over.set()

    async def more(self, count: int) -> None:
        """Return when this many more calls have ended, well or not."""
        enough = len(self.answered_by) + len(self.failed) + count
        await until_true(lambda: len(self.answered_by) + len(self.failed) >= enough)


async def replicas_seen(client: ServiceClient[EchoStub], calls: int) -> Counter[str]:
    """How many of these calls, made one after the other, each replica replied to."""
    callers = Callers(client)
    for _ in range(calls):
        await callers.call(wait_for_ready=True)
    assert callers.failed == []
    return Counter(callers.answered_by)


async def until_seen(client: ServiceClient[EchoStub], names: set[str]) -> None:
    """Call until these replicas, and no other, replied to twenty calls in a row."""
    while set(await replicas_seen(client, 20)) != names:  # noqa: ASYNC110 - seen from outside only
        await asyncio.sleep(0.01)
