"""Builds the coupon service and connects its layers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from common.db.database import open_database
from common.db.idempotency import IdempotencyStore
from common.db.readiness import check_ready
from common.locking.redis_lock import open_locks
from common.service import Application, run_service_jobs
from coupon_service.servicer import CouponServicer
from coupon_service.settings import CouponSettings
from coupon_service.tables import SCHEMA, answers
from coupon_service.use_cases.campaign import Campaigns, Issuance
from coupon_service.use_cases.coupon import Redemptions
from coupon_service.use_cases.share import Shares
from tally.coupon.v1.coupon_pb2_grpc import add_CouponServiceServicer_to_server


@asynccontextmanager
async def build(settings: CouponSettings) -> AsyncIterator[Application]:
    """Open what the service needs; close it when the last call has ended."""
    idempotency = IdempotencyStore(answers)
    async with (
        open_database(settings) as database,
        open_locks(settings.redis_url.get_secret_value()) as locks,
    ):
        campaigns = Campaigns(database, locks, idempotency)
        shares = Shares(database, locks, idempotency, settings.replica)
        issuance = Issuance(database, locks, idempotency, shares)
        redemptions = Redemptions(database, locks, idempotency)
        servicer = CouponServicer(campaigns, issuance, redemptions)
        try:
            async with run_service_jobs(database, idempotency):
                yield Application(
                    services=[(add_CouponServiceServicer_to_server, servicer)],
                    ready=partial(check_ready, database, schema=SCHEMA),
                )
        finally:
            await campaigns.close()
            await issuance.close()
            await redemptions.close()
