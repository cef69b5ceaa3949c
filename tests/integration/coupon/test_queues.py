"""The queues in Redis by themselves: what is kept, for how long, and what a late call removes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from common.ids import new_id
from common.locking.redis import RedisUnavailable
from coupon_service.model.ticket import (
    QueueCoupon,
    Ticket,
    TicketState,
    new_ticket_id,
    partition_of,
    queue_of,
)
from coupon_service.store import queue_scripts
from coupon_service.store.queue import Queues, open_queues
from coupon_service.store.queue_entries import Finished, IssuedBefore, Refused
from deploy.local.valkey import ValkeyServer
from tests.support.time_limits import long_limits

KEEP = timedelta(hours=1)
NOW = datetime(2026, 11, 28, tzinfo=UTC)


@pytest.fixture
async def redis(valkey_server: ValkeyServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey_server.url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def queues(valkey_server: ValkeyServer) -> AsyncIterator[Queues]:
    with long_limits():
        async with open_queues(valkey_server.url, waiting_max=100, keep=KEEP) as opened:
            yield opened


@pytest.fixture
def campaign_id() -> str:
    return new_id()


def keys_of(campaign_id: str) -> list[str]:
    queue = queue_of(campaign_id)
    return queue_scripts.queue_keys(partition_of(queue), queue)


async def enqueued(queues: Queues, campaign_id: str, user_id: str = "ann") -> str:
    ends = datetime.now(UTC) + timedelta(hours=2)
    ticket_id = new_ticket_id(campaign_id, NOW)
    found = await queues.enqueue(QueueCoupon(campaign_id, user_id, "q1"), ticket_id, ends)
    return found.ticket_id


async def test_the_keys_of_a_queue_end_after_their_campaign(
    queues: Queues, redis: Redis, campaign_id: str
) -> None:
    await enqueued(queues, campaign_id)
    for key in keys_of(campaign_id)[:4]:
        left = timedelta(milliseconds=await redis.pttl(key))
        assert timedelta(hours=2) < left <= timedelta(hours=2) + KEEP, key


async def test_a_queue_is_active_until_its_last_ticket_is_finished(
    queues: Queues, redis: Redis, campaign_id: str
) -> None:
    await redis.flushdb()
    queue = queue_of(campaign_id)
    for user_id in ("ann", "bob"):
        await enqueued(queues, campaign_id, user_id)
    for left in (2, 1):
        assert await queues.active(partition_of(queue), 100) == [queue]
        head = await queues.read(queue, 1)
        assert (head.waiting, len(head.entries)) == (left, 1)
        await queues.finish(queue, [Finished(head.entries[0])])
    assert await queues.active(partition_of(queue), 100) == []


async def test_a_final_state_is_kept_for_a_while_and_an_issued_ticket_is_not(
    queues: Queues, redis: Redis, campaign_id: str
) -> None:
    queue = queue_of(campaign_id)
    ids = [await enqueued(queues, campaign_id, user_id) for user_id in ("ann", "bob", "eve")]
    entries = (await queues.read(queue, 10)).entries
    finals = (None, Refused("COUPON_SOLD_OUT", NOW), IssuedBefore(ids[0]))
    await queues.finish(queue, [Finished(*pair) for pair in zip(entries, finals, strict=True)])
    issued, refused, before = await queues.look_up(queue, ids)
    assert (issued, before) == (None, IssuedBefore(ids[0]))
    assert refused == Ticket(
        ids[1], campaign_id, "bob", TicketState.REFUSED, NOW, failure_reason="COUPON_SOLD_OUT"
    )
    left_ms = await redis.pttl(queue_scripts.final_key(partition_of(queue), queue, ids[1]))
    assert timedelta(0) < timedelta(milliseconds=left_ms) <= KEEP


async def test_a_late_finish_removes_no_entry_of_a_new_queue(
    queues: Queues, redis: Redis, campaign_id: str
) -> None:
    """A consumer has read a ticket; the queue is lost, and another one waits under its entry id."""
    queue, entries = queue_of(campaign_id), keys_of(campaign_id)[0]
    await enqueued(queues, campaign_id, "ann")
    (old,) = (await queues.read(queue, 1)).entries
    await redis.delete(*keys_of(campaign_id))
    bob = await enqueued(queues, campaign_id, "bob")
    listed: Any = await redis.xrange(entries)
    ((_, fields),) = listed
    await redis.delete(entries)
    await redis.xadd(entries, fields, id=old.entry_id)
    await queues.finish(queue, [Finished(old, Refused("COUPON_SOLD_OUT", NOW))])
    (left,) = (await queues.read(queue, 10)).entries
    assert left.ticket is not None
    assert left.ticket.ticket_id == bob
    (found,) = await queues.look_up(queue, [bob])
    assert isinstance(found, Ticket)
    assert found.position == 1


async def test_positions_count_from_the_last_ticket_that_is_finished(
    queues: Queues, campaign_id: str
) -> None:
    queue = queue_of(campaign_id)
    ids = [await enqueued(queues, campaign_id, f"u{number}") for number in range(4)]

    async def positions() -> list[int]:
        found = await queues.look_up(queue, ids)
        return [each.position for each in found if isinstance(each, Ticket)]

    assert await positions() == [1, 2, 3, 4]
    entries = (await queues.read(queue, 2)).entries
    await queues.finish(queue, [Finished(entry) for entry in entries])
    assert await positions() == [1, 2]
    await queues.finish(queue, [Finished(entry) for entry in entries])  # a repetition
    assert await positions() == [1, 2]


REPLIES: dict[str, Any] = {
    "nothing": None,
    "of no command": [],
    "of another command": [7, "queued", "x", 1, "q1"],
    "a text": "OK",
    "a table": {"a": 1},
}
BODIES: dict[str, list[Any]] = {
    "empty": [],
    "too short": ["queued", "x"],
    "of other types": ["queued", 1, 1, "q1"],
    "texts for numbers": ["2", "3"],
    "another ticket": ["queued", f"{'0' * 8}-0000-7000-8000-{'0' * 12}", 1, "q1"],
    "no number of tickets": ["x", 0, "1-1", "text"],
    "half an entry": [1, 0, "1-1"],
}
"""After the number of the command."""


@pytest.mark.parametrize("name", [*REPLIES, *BODIES])
async def test_replies_that_do_not_fit_are_no_replies(
    valkey_server: ValkeyServer, campaign_id: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A reply to another command, or of another form: the caller has nothing."""

    async def sent(_: Any, __: Any, number: int, *___: Any) -> Any:
        return [number, *BODIES[name]] if name in BODIES else REPLIES[name]

    monkeypatch.setattr("common.locking.redis.FAILURES_MAX", 1_000)
    monkeypatch.setattr("common.locking.redis.Script.__call__", sent)
    async with open_queues(valkey_server.url, waiting_max=1, keep=KEEP) as queues:
        with pytest.raises(RedisUnavailable):
            await enqueued(queues, campaign_id)
        with pytest.raises(RedisUnavailable):
            await queues.look_up(queue_of(campaign_id), ["x"] * 9)
        with pytest.raises(RedisUnavailable):
            await queues.read(queue_of(campaign_id), 1)
