"""Real processes: a consumer is killed between COMMIT and FINISH, and the order stays."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from common import failpoints
from common.failpoints import Action, Armed
from deploy.local.postgres_roles import ServiceUrls
from deploy.local.valkey import ValkeyServer
from tally.coupon.v1 import coupon_pb2 as pb
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tests.integration.start.process import process
from tests.support.coupons import decided, open_campaign, queue
from tests.support.replicas import channel

TICKETS: Final = 40
COMMITTED: Final = "lane.issue_tickets.IssueTickets.after"
SERVICE: Final = "coupon_service"


async def test_tickets_keep_their_order_when_their_consumer_is_killed(
    coupon_database: ServiceUrls, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    environment = {
        "TALLY_COUPON_DATABASE_URL": coupon_database.runtime,
        "TALLY_REDIS_URL": valkey_server.url,
        failpoints.VARIABLE: str(tmp_path),
    }
    async with AsyncExitStack() as exits:

        async def started() -> Any:
            return await exits.enter_async_context(process(SERVICE, **environment))

        consumer = await started()
        # Alone, it is elected in every partition.
        for _ in range(4):
            await consumer.line("queue_consumer_elected")
        other = await started()
        address = f"127.0.0.1:{(await other.line('listening'))['port']}"
        await other.line("ready")
        coupon: Any = CouponServiceStub(await exits.enter_async_context(channel(address)))
        campaign_id = await open_campaign(coupon, quantity=TICKETS, queue_only=True)
        tickets: list[pb.Ticket] = []
        for number in range(TICKETS):
            if number == TICKETS // 2:
                await decided(coupon, tickets[0])
                failpoints.arm(tmp_path, Armed(COMMITTED, Action.KILL))
            response = await coupon.QueueCoupon(queue(campaign_id, f"u{number}"))
            tickets.append(response.ticket)
        final = [await decided(coupon, ticket) for ticket in tickets]
        assert [one.pid for one in failpoints.fired(tmp_path)] == [consumer.process.pid]
    assert {ticket.state for ticket in final} == {pb.Ticket.STATE_ISSUED}
    assert [ticket.coupon.issue_number for ticket in final] == list(range(1, TICKETS + 1))
