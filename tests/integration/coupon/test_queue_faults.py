"""Queues that are full, lost, wrong or away: no coupon is lost, and none is issued twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from coupon_service.model.ticket import partition_of, queue_of
from coupon_service.settings import CouponSettings
from coupon_service.store import queue_scripts
from coupon_service.store.queue import open_queues
from coupon_service.use_cases import queue_turn
from coupon_service.wiring import build
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from tally.coupon.v1 import coupon_pb2 as pb
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tests.support.coupons import HOUR, decided, get_ticket, open_campaign, queue, watch_ticket
from tests.support.payments import until
from tests.support.refusals import outcome, refused
from tests.support.replicas import channel, replicas

WAITING_MAX = 3
OLD_TICKET_ID = "018f0000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def redis_url(valkey_server: ValkeyServer) -> str:
    """With Redis in every run: the queues are in it."""
    return valkey_server.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


async def queued(coupon: Any, campaign_id: str, user_id: str = "ann") -> pb.Ticket:
    response = await coupon.QueueCoupon(queue(campaign_id, user_id))
    ticket: pb.Ticket = response.ticket
    return ticket


def keys_of(campaign_id: str) -> list[str]:
    name = queue_of(campaign_id)
    return queue_scripts.queue_keys(partition_of(name), name)


# -- lost ----------------------------------------------------------------------------------------


async def test_a_lost_ticket_is_queued_again_and_issued_once(
    coupon: Any, opened: asyncio.Event, redis: Redis, sql: Callable[[str], str]
) -> None:
    campaign_id = await open_campaign(coupon, queue_only=True)
    lost = await queued(coupon, campaign_id)
    await redis.flushall()
    with refused("TICKET_LOST") as ended:
        await coupon.GetTicket(get_ticket(lost))
    assert ended.refusal.retry_after_s == 1.0
    with refused("TICKET_LOST"):
        await coupon.WatchTicket(watch_ticket(lost)).read()
    again = await coupon.QueueCoupon(queue(campaign_id, "ann"))
    assert not again.replayed
    assert again.ticket.ticket_id != lost.ticket_id
    opened.set()
    issued = await decided(coupon, again.ticket)
    assert issued.coupon.issue_number == 1
    assert sql("SELECT count(*) FROM coupons").strip() == "1"


async def test_an_issued_coupon_outlives_the_queue(coupon: Any, redis: Redis) -> None:
    campaign_id = await open_campaign(coupon, queue_only=True)
    issued = await decided(coupon, await queued(coupon, campaign_id))
    await redis.flushall()
    assert (await coupon.GetTicket(get_ticket(issued))).ticket == issued
    again = await coupon.QueueCoupon(queue(campaign_id, "ann"))
    assert (again.replayed, again.ticket) == (True, issued)


async def test_queued_again_while_the_first_is_issued_both_tickets_are_issued(
    coupon: Any, monkeypatch: pytest.MonkeyPatch, redis: Redis, sql: Callable[[str], str]
) -> None:
    """The consumer has read the first ticket when the queue is lost, and issues it."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    issue = queue_turn.QueueTurns._issue

    async def held(self: Any, *args: Any) -> Any:
        reached.set()
        await go_on.wait()
        return await issue(self, *args)

    monkeypatch.setattr(queue_turn.QueueTurns, "_issue", held)
    campaign_id = await open_campaign(coupon, queue_only=True)
    first = await queued(coupon, campaign_id)
    await reached.wait()
    # The queue alone: without its lock the consumer would be stopped.
    await redis.delete(*keys_of(campaign_id))
    second = await queued(coupon, campaign_id)
    assert second.ticket_id != first.ticket_id
    go_on.set()
    final = await decided(coupon, second)
    assert final.coupon == (await decided(coupon, first)).coupon
    assert (final.ticket_id, final.state) == (second.ticket_id, pb.Ticket.STATE_ISSUED)
    assert sql("SELECT ticket_id FROM coupons").strip() == first.ticket_id


async def test_a_follower_is_told_that_its_ticket_is_lost(
    coupon: Any, opened: asyncio.Event, redis: Redis
) -> None:
    stream = coupon.WatchTicket(
        watch_ticket(await queued(coupon, await open_campaign(coupon, queue_only=True)))
    )
    await stream.read()
    await redis.flushall()
    with refused("TICKET_LOST"):
        await stream.read()
    assert not opened.is_set()


# -- full, wrong ---------------------------------------------------------------------------------


async def test_a_full_queue_refuses_new_tickets_only(
    coupon_database: ServiceUrls, redis_url: str, opened: asyncio.Event
) -> None:
    async with (
        replicas(
            1,
            CouponSettings,
            build,
            database_url=coupon_database.runtime,
            redis_url=redis_url,
            queue_tickets_max=WAITING_MAX,
        ) as addresses,
        channel(*addresses) as to_replica,
    ):
        coupon: Any = CouponServiceStub(to_replica)
        campaign_id = await open_campaign(coupon, queue_only=True)
        tickets = [await queued(coupon, campaign_id, f"u{n}") for n in range(WAITING_MAX)]
        with refused("QUEUE_FULL") as ended:
            await queued(coupon, campaign_id, "late")
        assert ended.refusal.retry_after_s == 5.0
        assert ended.refusal.quota[0].subject == f"queue:{campaign_id}"
        assert await queued(coupon, campaign_id, "u0") == tickets[0]
        other = await open_campaign(coupon, "other", queue_only=True)
        assert (await queued(coupon, other, "other")).position == 1
        opened.set()
        await decided(coupon, tickets[-1])
        late = await decided(coupon, await queued(coupon, campaign_id, "late"))
        assert late.coupon.issue_number == WAITING_MAX + 1


UNREADABLE: dict[str, dict[bytes, bytes]] = {
    "another field": {b"x": b"1"},
    "no ids": {b"ticket": b"1 2 3 4 5"},
    "not text": {b"ticket": b"\xff\xfe\x00"},
    "too long": {b"ticket": b"x" * 100_000},
    "two fields": {b"ticket": b"a", b"more": b"b"},
    "of another queue": {
        b"ticket": b"1 018f0000-0000-7000-8000-000000000000"
        b" 018f0000-0000-7000-8000-000000000000 eve q1"
    },
}


async def test_entries_that_cannot_be_read_are_passed_over(
    coupon: Any, opened: asyncio.Event, redis: Redis, sql: Callable[[str], str]
) -> None:
    campaign_id = await open_campaign(coupon, queue_only=True)
    entries = keys_of(campaign_id)[0]
    tickets = []
    for number, fields in enumerate(UNREADABLE.values()):
        tickets.append(await queued(coupon, campaign_id, f"u{number}"))
        await redis.xadd(entries, fields)  # type: ignore[arg-type]
    opened.set()
    final = [await decided(coupon, ticket) for ticket in tickets]
    assert [ticket.coupon.issue_number for ticket in final] == list(range(1, len(tickets) + 1))
    await until(lambda: redis.xlen(entries), lambda left: left == 0)
    assert sql("SELECT count(*) FROM coupons WHERE user_id = 'eve'").strip() == "0"


async def test_a_ticket_whose_entry_is_gone_is_lost_and_can_be_queued_again(
    coupon: Any, opened: asyncio.Event, redis: Redis
) -> None:
    campaign_id = await open_campaign(coupon, queue_only=True)
    ann, _ = [await queued(coupon, campaign_id, user_id) for user_id in ("ann", "bob")]
    entries = keys_of(campaign_id)[0]
    listed: Any = await redis.xrange(entries)
    await redis.xdel(entries, listed[0][0])
    opened.set()

    async def of_ann() -> Any:
        return await outcome(coupon.GetTicket(get_ticket(ann)))

    assert await until(of_ann, lambda found: isinstance(found, str)) == "TICKET_LOST"
    again = await decided(coupon, await queued(coupon, campaign_id, "ann"))
    assert again.coupon.issue_number == 2


async def test_a_queue_that_no_consumer_knows_is_served_when_a_call_is_repeated(
    coupon: Any, opened: asyncio.Event, redis: Redis
) -> None:
    campaign_id = await open_campaign(coupon, queue_only=True)
    ticket = await queued(coupon, campaign_id)
    await redis.delete(queue_scripts.active_key(partition_of(queue_of(campaign_id))))
    assert await queued(coupon, campaign_id) == ticket
    opened.set()
    assert (await decided(coupon, ticket)).coupon.issue_number == 1


@pytest.mark.parametrize("of", ["queue", "campaign"])
async def test_a_forged_ticket_gets_what_a_call_would_get(
    coupon: Any, opened: asyncio.Event, redis: Redis, sql: Callable[[str], str], of: str
) -> None:
    """What an entry says is checked by the rows: nobody has two coupons, no ticket two users."""
    campaign_id = await open_campaign(coupon, queue_only=True)
    ann = await queued(coupon, campaign_id, "ann")
    user = "ann" if of == "queue" else "eve"
    forged = f"7 {ann.ticket_id} {campaign_id} {user} q9"
    await redis.xadd(keys_of(campaign_id)[0], {"ticket": forged})
    bob = await queued(coupon, campaign_id, "bob")
    opened.set()
    final = [await decided(coupon, ticket) for ticket in (ann, bob)]
    assert [ticket.coupon.issue_number for ticket in final] == [1, 2]
    assert sql("SELECT count(*) FROM coupons").strip() == "2"


# -- away ----------------------------------------------------------------------------------------


async def test_without_redis_issued_tickets_are_read_and_none_is_queued(
    coupon: Any, coupon_database: ServiceUrls
) -> None:
    campaign_id = await open_campaign(coupon, queue_only=True)
    issued = await decided(coupon, await queued(coupon, campaign_id))
    async with (
        replicas(1, CouponSettings, build, database_url=coupon_database.runtime) as addresses,
        channel(*addresses) as to_replica,
    ):
        alone: Any = CouponServiceStub(to_replica)
        assert (await alone.GetTicket(get_ticket(issued))).ticket == issued
        assert (await alone.QueueCoupon(queue(campaign_id, "ann"))).ticket == issued
        with refused("TICKET_LOST") as ended:
            await alone.QueueCoupon(queue(campaign_id, "bob"))
        assert ended.refusal.retry_after_s == 1.0
        # However old a ticket is, it may wait in the queue that cannot be reached.
        for ticket_id in (issued.ticket_id[:20] + "000-000000000000", OLD_TICKET_ID):
            with refused("TICKET_LOST"):
                await alone.GetTicket(pb.GetTicketRequest(ticket_id=ticket_id, user_id="ann"))


async def test_a_redis_that_ends_and_starts_empty_loses_no_coupon(
    coupon_database: ServiceUrls, tmp_path: Path, sql: Callable[[str], str]
) -> None:
    """Flushed, killed, away and empty, while users queue until their tickets are final."""
    users, quantity = [f"u{number}" for number in range(60)], 40
    with ValkeyServer(tmp_path / "valkey") as server:
        async with (
            replicas(
                3,
                CouponSettings,
                build,
                database_url=coupon_database.runtime,
                redis_url=server.url,
            ) as addresses,
            channel(*addresses) as to_replicas,
        ):
            coupon: Any = CouponServiceStub(to_replicas)
            campaign_id = await open_campaign(coupon, quantity=quantity, queue_only=True)
            finals: dict[str, Any] = {}

            async def play(user_id: str) -> None:
                while user_id not in finals:
                    found = await outcome(coupon.QueueCoupon(queue(campaign_id, user_id)))
                    while not isinstance(found, str) and found.ticket.state == 1:
                        await asyncio.sleep(0.01)
                        found = await outcome(coupon.GetTicket(get_ticket(found.ticket)))
                    if found == "TICKET_LOST":
                        await asyncio.sleep(0.02)
                        continue
                    finals[user_id] = found if isinstance(found, str) else found.ticket

            async def issued_at_least(count: int) -> None:
                await until(
                    lambda: asyncio.to_thread(sql, "SELECT count(*) FROM coupons"),
                    lambda text: int(text) >= count,
                )

            async with asyncio.TaskGroup() as group:
                for user_id in users[:20]:
                    group.create_task(play(user_id))
                await issued_at_least(5)
                async with Redis.from_url(server.url) as client:
                    await client.flushall()
                for user_id in users[20:40]:
                    group.create_task(play(user_id))
                await issued_at_least(25)
                assert server.child is not None
                server.child.stop(signal.SIGKILL)
                server.child = None
                for user_id in users[40:]:
                    group.create_task(play(user_id))
                await asyncio.sleep(0.2)
                server.start()
    numbers = [
        found.coupon.issue_number
        for found in finals.values()
        if not isinstance(found, str) and found.state == pb.Ticket.STATE_ISSUED
    ]
    assert sorted(numbers) == list(range(1, quantity + 1))
    others = {
        found if isinstance(found, str) else found.failure_reason
        for found in finals.values()
        if isinstance(found, str) or found.state == pb.Ticket.STATE_REFUSED
    }
    assert others == {"COUPON_SOLD_OUT"}
    assert sql("SELECT count(*), count(DISTINCT user_id) FROM coupons").strip() == "40|40"


async def test_redis_that_evicts_is_reported_once(redis: Redis, redis_url: str) -> None:
    async with open_queues(redis_url, waiting_max=1, keep=HOUR) as queues:
        with capture_logs() as logged:
            await queues.check_eviction()
            await redis.config_set("maxmemory-policy", "allkeys-lru")
            try:
                await queues.check_eviction()
                await queues.check_eviction()
            finally:
                await redis.config_set("maxmemory-policy", "noeviction")
    assert [(line["event"], line["policies"]) for line in logged] == [
        ("redis_evicts_tickets", ["allkeys-lru"])
    ]
