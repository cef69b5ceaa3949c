"""Builds the coupon service and connects its layers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Final

from common.db.database import open_database
from common.db.errors import count_violations_of
from common.db.idempotency import IdempotencyStore
from common.db.readiness import check_ready
from common.locking.key_line import Waiting
from common.locking.key_locks import open_key_locks
from common.locking.redis_lock import open_locks
from common.service import Application, run_service_jobs
from common.tasks import PeriodicJob
from coupon_service.servicer import CouponServicer
from coupon_service.settings import CouponSettings
from coupon_service.store.queue import open_queues
from coupon_service.tables import SCHEMA, answers, metadata
from coupon_service.use_cases.campaign import Campaigns
from coupon_service.use_cases.coupon import Redemptions
from coupon_service.use_cases.issuance import Issuance
from coupon_service.use_cases.queue_consumer import QueueConsumer
from coupon_service.use_cases.share import Shares
from coupon_service.use_cases.ticket import Tickets
from coupon_service.use_cases.ticket_decider import ticket_lane
from coupon_service.use_cases.ticket_watch import TicketWatches
from tally.coupon.v1.coupon_pb2_grpc import add_CouponServiceServicer_to_server

WATCH_S: Final = 0.5
"""How late, about, a follower of a ticket gets its new place."""


@asynccontextmanager
async def build(settings: CouponSettings) -> AsyncIterator[Application]:
    """Open what the service needs; close it, last first, when the last call has ended."""
    idempotency = IdempotencyStore(answers)
    count_violations_of(metadata)
    redis_url = settings.redis_url.get_secret_value()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        locks = await stack.enter_async_context(open_locks(redis_url))
        campaigns = Campaigns(database, locks, idempotency)
        stack.push_async_callback(campaigns.close)
        shares = Shares(database, locks, idempotency, settings.replica)
        issuance = Issuance(database, locks, idempotency, shares)
        stack.push_async_callback(issuance.close)
        redemptions = Redemptions(database, locks, idempotency)
        stack.push_async_callback(redemptions.close)
        queues = await stack.enter_async_context(
            open_queues(
                redis_url,
                waiting_max=settings.queue_tickets_max,
                keep=timedelta(seconds=settings.ticket_retention_s),
            )
        )
        lane = ticket_lane(database, locks, idempotency)
        stack.push_async_callback(lane.close)
        consumer = QueueConsumer(
            queues,
            lane,
            await stack.enter_async_context(
                open_key_locks(redis_url, "coupon_queue", waiting=Waiting.HANDOFF)
            ),
        )
        stack.push_async_callback(consumer.close)
        tickets = Tickets(database, queues, on_queued=consumer.wake)
        stack.push_async_callback(tickets.close)
        watches = TicketWatches(tickets)
        await stack.enter_async_context(
            run_service_jobs(
                database,
                idempotency,
                PeriodicJob("watch_tickets", WATCH_S, lambda _: watches.poll()),
            )
        )
        if redis_url:
            consumer.start(database.checked)
        yield Application(
            services=[
                (
                    add_CouponServiceServicer_to_server,
                    CouponServicer(campaigns, issuance, redemptions, tickets, watches),
                )
            ],
            ready=partial(check_ready, database, schema=SCHEMA),
        )
