"""A Redis that replies with errors or nonsense locks nothing, and nobody hangs or is misled."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from common.locking import redis as redis_calls
from common.locking.key_line import Waiting
from common.locking.key_locks import open_key_locks
from common.locking.lock_errors import LockUnavailable
from tests.integration.common.test_redis_replies import REPLIES
from tests.support.redis_stand_in import RedisStandIn
from tests.support.time_limits import LONG_S

GRANTED = b"*4\r\n:1\r\n:5\r\n:0\r\n:1\r\n"
"""The reply to the first command of a process."""
OTHERS = [
    *(b"*4\r\n:2\r\n:5\r\n:0\r\n:1\r\n", b"*4\r\n:1\r\n:-5\r\n:0\r\n:1\r\n"),
    *(b"*4\r\n:1\r\n:5\r\n:0\r\n:0\r\n", b"*4\r\n#t\r\n:5\r\n:0\r\n:1\r\n"),
    *(b"*4\r\n:1\r\n$1\r\n5\r\n:0\r\n:1\r\n", b"*3\r\n:1\r\n:5\r\n:0\r\n"),
]
"""To another command, or not of the form."""


@pytest.fixture(autouse=True)
def short_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_calls, "OPEN_S", 0.001)


@pytest.fixture
async def server() -> AsyncIterator[RedisStandIn]:
    async with RedisStandIn.replying(GRANTED) as running:
        yield running


async def test_the_right_reply_is_a_grant(server: RedisStandIn) -> None:
    """The control of the next test."""
    async with (
        open_key_locks(server.url, "test", waiting=Waiting.SIMPLE) as locks,
        locks.hold(["key"], required=True) as hold,
    ):
        assert hold.fence == 5


@pytest.mark.parametrize("waiting", Waiting)
@pytest.mark.parametrize("reply", [*REPLIES, *OTHERS], ids=lambda reply: repr(reply[:24]))
async def test_a_wrong_reply_is_no_grant(
    server: RedisStandIn, reply: bytes, waiting: Waiting
) -> None:
    server.reply = reply
    wait_s = 0.0 if waiting is Waiting.SIMPLE else LONG_S
    async with open_key_locks(server.url, "test", waiting=waiting) as locks:
        with pytest.raises(LockUnavailable):
            await locks.hold(["key"], wait_s=wait_s, required=True).__aenter__()
        async with locks.hold(["key"], wait_s=wait_s) as hold:
            assert not hold.guarded
            assert hold.fence is None
