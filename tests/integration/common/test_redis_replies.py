"""Replies of Redis that are errors, or well-formed and wrong: they count as no reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from common.locking import redis as redis_calls
from common.locking.locks import Grant, Locks
from common.locking.marks import InProgressMarks, open_marks
from common.locking.redis import open_redis
from common.locking.redis_lock import RedisLocks
from tests.support.redis_stand_in import OK, RedisStandIn

KEYS = [("a",), ("b",)]
BOTH_TAKEN = b"*2\r\n:0\r\n:0\r\n"
ERRORS = [
    *("READONLY You can't write against a read only replica.", "LOADING", "MASTERDOWN Link down"),
    *("MOVED 1 127.0.0.1:1", "ASK 1 127.0.0.1:1", "CLUSTERDOWN Hash slot not served", "TRYAGAIN"),
    *("NOSCRIPT No matching script.", "NOAUTH Authentication required.", "WRONGPASS no", "NOPERM"),
    *("OOM command not allowed", "BUSY a script runs", "WRONGTYPE Operation", "ERR", "MISCONF", ""),
]
NOT_THE_PROTOCOL = [
    *(b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"*-2\r\n", b"$2\r\n\xff\xfe\r\n", b"\r\n"),
    *(b":1.5\r\n", b"*1\r\n" * 10_000),
]
WRONG = [
    *(b":0\r\n", b":1\r\n", b"+OK\r\n", b"$-1\r\n", b"*0\r\n", b"*-1\r\n", b"$0\r\n\r\n", b"_\r\n"),
    *(
        b"*1\r\n:0\r\n",
        b"*2\r\n:0\r\n:3\r\n",
        b"*3\r\n:0\r\n:0\r\n:0\r\n",
        b"*2\r\n:2\r\n:1\r\n",
        b"*2\r\n:0\r\n$-1\r\n",
    ),
    *(b"*2\r\n$1\r\n1\r\n$1\r\n0\r\n", b"*2\r\n*0\r\n*0\r\n", b"#t\r\n", b"%0\r\n", b",1.0\r\n"),
]
REPLIES = [*(f"-{error}\r\n".encode() for error in ERRORS), *NOT_THE_PROTOCOL, *WRONG]


def wrong(*right: bytes) -> pytest.MarkDecorator:
    """Every reply but those that are right for a command."""
    return pytest.mark.parametrize(
        "reply", [each for each in REPLIES if each not in right], ids=lambda reply: repr(reply[:20])
    )


@pytest.fixture(autouse=True)
def short_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_calls, "OPEN_S", 0.02)


@pytest.fixture
async def server() -> AsyncIterator[RedisStandIn]:
    async with RedisStandIn.replying(BOTH_TAKEN) as running:
        yield running


@pytest.fixture
async def locks(server: RedisStandIn) -> AsyncIterator[Locks]:
    """Without their subscription, which connects by itself."""
    async with open_redis(server.url) as redis:
        yield RedisLocks(redis)


@pytest.fixture
async def marks(server: RedisStandIn) -> AsyncIterator[InProgressMarks]:
    async with open_marks(server.url) as opened:
        yield opened


async def until_locked(locks: Locks) -> Grant:
    """The first grant of all keys."""
    while (grant := await locks.acquire(KEYS)).acquired != {"a", "b"}:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return grant


@wrong(BOTH_TAKEN)
@pytest.mark.parametrize("greets", [True, False], ids=["", "handshake"])
async def test_a_wrong_reply_to_an_acquire_is_no_grant_and_locks_come_back(
    server: RedisStandIn, locks: Locks, reply: bytes, greets: bool
) -> None:
    server.reply, server.greets = reply, greets
    for _ in range(5):
        grant = await locks.acquire(KEYS)
        assert (grant.acquired, grant.busy) == (frozenset(), {})
    assert server.received >= 1
    server.reply, server.greets = BOTH_TAKEN, True
    await until_locked(locks)


@pytest.mark.parametrize("greets", [True, False], ids=["", "handshake"])
async def test_a_connection_that_ends_within_a_reply_is_no_grant(
    server: RedisStandIn, locks: Locks, greets: bool
) -> None:
    """Wherever it ends; and locks come back."""
    for size in range(len(BOTH_TAKEN)):
        server.reply, server.greets, server.hangs_up = BOTH_TAKEN[:size], greets, True
        assert (await locks.acquire(KEYS)).acquired == frozenset()
        server.reply, server.greets, server.hangs_up = BOTH_TAKEN, True, False
        await until_locked(locks)


@wrong(b":0\r\n", b":1\r\n", b":2\r\n")
async def test_a_wrong_reply_to_a_release_is_ignored_and_locks_come_back(
    server: RedisStandIn, locks: Locks, reply: bytes
) -> None:
    grant = await locks.acquire(KEYS)
    server.reply = reply
    for _ in range(5):
        await locks.release(grant)
    server.reply = BOTH_TAKEN
    await until_locked(locks)


@wrong(b"$-1\r\n", b"*-1\r\n", b"_\r\n")
async def test_a_wrong_reply_about_a_mark_is_no_mark(
    server: RedisStandIn, marks: InProgressMarks, reply: bytes
) -> None:
    server.reply = reply
    for _ in range(5):
        assert await marks.begin("key", "one") is None
        await marks.done("key", "result")
        await marks.clear("key", "one")
    server.reply = b"$15\r\nIN_PROGRESS:two\r\n"
    while await marks.begin("key", "one") != "IN_PROGRESS:two":  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_after_a_wrong_reply_the_server_is_connected_anew(
    server: RedisStandIn, locks: Locks
) -> None:
    """By its address: another server may be there by now."""
    await locks.acquire(KEYS)
    server.reply = b"-READONLY You can't write against a read only replica.\r\n"
    await locks.acquire(KEYS)
    server.reply = BOTH_TAKEN
    await until_locked(locks)
    assert server.connections == 2


@pytest.mark.parametrize("reply", [OK, b":0\r\n", b"*0\r\n", b"-ERR\r\n", b"$-1\r\n"], ids=repr)
async def test_a_server_that_greets_wrongly_is_a_problem_not_an_option(
    server: RedisStandIn, reply: bytes
) -> None:
    server.reply, server.greets = reply, False
    assert await redis_calls.connection_problem(server.url)
