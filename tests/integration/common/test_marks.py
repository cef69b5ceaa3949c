"""Marks in Redis: hints that may be lost, late or wrong, and that never raise."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from common.ids import new_id
from common.locking.marks import LIFE_MS, InProgressMarks, open_marks
from deploy.local.valkey import ValkeyServer


@pytest.fixture
async def marks(valkey_server: ValkeyServer, slow_machine: None) -> AsyncIterator[InProgressMarks]:
    async with open_marks(valkey_server.url) as opened:
        yield opened


async def test_the_first_caller_marks_and_others_find_the_mark(
    marks: InProgressMarks, redis: Redis
) -> None:
    key = new_id()
    assert await marks.begin(key, "one") is None
    assert await marks.begin(key, "one") is None  # a repetition after a lost reply
    assert await marks.begin(key, "two") == "IN_PROGRESS:one"
    assert 0 < await redis.pttl(key) <= LIFE_MS
    await marks.done(key, "result")
    for owner in ("one", "two"):
        assert await marks.begin(key, owner) == "DONE:result"
    assert 0 < await redis.pttl(key) <= LIFE_MS


async def test_only_its_owner_clears_a_mark_in_progress(marks: InProgressMarks) -> None:
    key = new_id()
    await marks.begin(key, "one")
    await marks.clear(key, "two")
    assert await marks.begin(key, "two") == "IN_PROGRESS:one"
    await marks.clear(key, "one")
    assert await marks.begin(key, "two") is None
    await marks.done(key, "result")
    await marks.clear(key, "two")
    assert await marks.begin(key, "one") == "DONE:result"


@pytest.mark.parametrize("url", ["", "redis://127.0.0.1:1/0"], ids=["none", "unavailable"])
async def test_without_redis_no_caller_finds_a_mark(url: str) -> None:
    async with open_marks(url) as marks:
        for _ in range(6):  # beyond the breaker's limit
            assert await marks.begin("key", "one") is None
            await marks.done("key", "result")
            await marks.clear("key", "one")


async def test_a_key_of_another_type_is_no_mark(marks: InProgressMarks, redis: Redis) -> None:
    key = new_id()
    await redis.lpush(key, "1")
    assert await marks.begin(key, "one") is None
