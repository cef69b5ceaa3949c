"""Operations with a Redis whose replies are errors or wrong: the database's guards are enough."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from common.locking import redis as redis_calls
from tests.integration.services.operations import SERVICES, Operation
from tests.support.redis_stand_in import OK, RedisStandIn
from tests.support.stack import Stack, no_faults, stack, stack_databases, stack_options

__all__ = ["no_faults", "stack", "stack_databases", "stack_options"]

REPLIES = [
    *(b":0\r\n", b":1\r\n", OK, b"$-1\r\n", b"*0\r\n", b"*2\r\n:1\r\n:1\r\n", b"*1\r\n:7\r\n"),
    *(b"-READONLY\r\n", b"-CROSSSLOT\r\n", b"-NOSCRIPT\r\n", b"HTTP/1.1 400\r\n"),
]
with_first_line = pytest.mark.parametrize(
    "operation",
    [
        pytest.param(operation, id=operation.command.__name__)
        for strategies, operations in SERVICES.values()
        for operation in operations
        if strategies[operation.command].redis_key or strategies[operation.command].mark
    ],
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand_in() -> AsyncIterator[RedisStandIn]:
    async with RedisStandIn.replying(OK) as running:
        yield running


@pytest.fixture(scope="module")
def redis_url(stand_in: RedisStandIn) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        # No call is skipped because the one before it failed.
        patch.setattr(redis_calls, "OPEN_S", 0.0)
        yield stand_in.url


@pytest.mark.asyncio(loop_scope="module")
@with_first_line
async def test_an_operation_succeeds_whatever_redis_replies(
    stack: Stack, stand_in: RedisStandIn, operation: Operation
) -> None:
    for reply in REPLIES:
        calls = await operation.prepare(stack)
        stand_in.reply = reply
        received = stand_in.received
        await calls()
        assert stand_in.received > received
