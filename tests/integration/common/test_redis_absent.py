"""``tally_lock_absent`` follows Redis in a service without traffic too."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from common.locking import redis_lock
from common.locking.redis_lock import open_locks
from common.metrics import REGISTRY
from deploy.local.valkey import ValkeyServer
from tests.support.redis_stand_in import OK, RedisStandIn
from tests.support.time_limits import LONG_S
from tests.support.waits import until_true


def absent() -> float | None:
    return REGISTRY.get_sample_value("tally_lock_absent")


async def test_redis_that_leaves_and_returns_is_seen_without_a_call(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path) as server:
        async with open_locks(server.url):
            await until_true(lambda: absent() == 0)
            server.stop()
            await until_true(lambda: absent() == 1)
            server.start()
            await until_true(lambda: absent() == 0)
    assert absent() == 0, "locks that are closed do not count"


async def test_a_failed_call_counts_until_another_succeeds_or_a_minute_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with RedisStandIn.replying(OK) as server, open_locks(server.url) as locks:
        assert isinstance(locks, redis_lock.RedisLocks)
        locks.channel = None
        await locks.acquire([("a",)])
        assert absent() == 1
        server.reply = b"*1\r\n:0\r\n"
        async with asyncio.timeout(LONG_S):
            while not (await locks.acquire([("a",)])).acquired:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert absent() == 0
        server.reply = OK
        await locks.acquire([("a",)])
        assert absent() == 1
        monkeypatch.setattr(redis_lock, "ABSENT_S", 0.0)
        assert absent() == 0
