"""Real processes: the consumer is killed while it issues, and the order stays."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Final

from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from tally.coupon.v1 import coupon_pb2 as pb
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tests.integration.start.process import process
from tests.support.coupons import decided, open_campaign, queue
from tests.support.replicas import channel

TICKETS: Final = 120
SERVICE: Final = "coupon_service"


async def test_tickets_keep_their_order_when_their_consumer_is_killed(
    coupon_database: ServiceUrls, valkey_server: ValkeyServer
) -> None:
    environment = {
        "TALLY_COUPON_DATABASE_URL": coupon_database.runtime,
        "TALLY_REDIS_URL": valkey_server.url,
    }
    async with AsyncExitStack() as exits:

        async def started() -> Any:
            return await exits.enter_async_context(process(SERVICE, **environment))

        consumer = await started()
        # Alone, it is elected in every partition.
        for _ in range(4):
            await consumer.line("queue_consumer_elected")
        others = await asyncio.gather(started(), started())
        stubs: list[Any] = []
        for one in others:
            address = f"127.0.0.1:{(await one.line('listening'))['port']}"
            await one.line("ready")
            stubs.append(CouponServiceStub(await exits.enter_async_context(channel(address))))
        campaign_id = await open_campaign(stubs[0], quantity=TICKETS, queue_only=True)
        tickets: list[pb.Ticket] = []
        for number in range(TICKETS):
            if number == TICKETS // 2:
                await decided(stubs[0], tickets[0])
                consumer.process.kill()
            response = await stubs[number % 2].QueueCoupon(queue(campaign_id, f"u{number}"))
            tickets.append(response.ticket)
        final = [await decided(stubs[0], ticket) for ticket in tickets]
    assert {ticket.state for ticket in final} == {pb.Ticket.STATE_ISSUED}
    assert [ticket.coupon.issue_number for ticket in final] == list(range(1, TICKETS + 1))
