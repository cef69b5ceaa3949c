"""Tickets of a campaign's queue: what its consumer does, done by a test or held back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common.db.database import open_pools
from common.db.idempotency import IdempotencyStore
from common.ids import new_id
from common.locking.redis_lock import open_locks
from coupon_service.model.ticket import IssueTickets, QueueCoupon, QueuedTicket, queue_of
from coupon_service.store.queue import Queues
from coupon_service.store.queue_entries import Head
from coupon_service.tables import answers
from coupon_service.use_cases.ticket_decider import TicketLane, ticket_lane


def tickets_of(campaign_id: str, user_ids: Iterable[str], *, fence: int = 1) -> IssueTickets:
    """New tickets of these users, as a consumer with this fence submits them."""
    tickets = tuple(
        QueuedTicket(new_id()[:-8] + queue_of(campaign_id), QueueCoupon(campaign_id, user_id, "q1"))
        for user_id in user_ids
    )
    return IssueTickets(campaign_id, fence, tickets)


@asynccontextmanager
async def lane_on(database_url: str, redis_url: str = "") -> AsyncIterator[TicketLane]:
    """A lane of a replica of its own."""
    database = open_pools(database_url, application_name="tickets", pool_size=4)
    async with open_locks(redis_url) as locks:
        lane = ticket_lane(database, locks, IdempotencyStore(answers))
        try:
            yield lane
        finally:
            await lane.close()
            await database.close()


def hold_queues(patch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let no consumer of this process read a queue until the event is set."""
    opened = asyncio.Event()
    read = Queues.read

    async def held(self: Queues, *args: Any) -> Head:
        await opened.wait()
        return await read(self, *args)

    patch.setattr(Queues, "read", held)
    return opened


def limit_turns(patch: pytest.MonkeyPatch) -> asyncio.Semaphore:
    """Let consumers of this process read a queue that has tickets once for each release."""
    turns = asyncio.Semaphore(0)
    read = Queues.read

    async def limited(self: Queues, *args: Any) -> Head:
        await turns.acquire()
        head = await read(self, *args)
        if not head.entries:
            turns.release()
        return head

    patch.setattr(Queues, "read", limited)
    return turns
