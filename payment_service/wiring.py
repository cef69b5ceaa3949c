"""Builds the payment service and connects its layers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from common.answers import Answers
from common.background import Work, in_background
from common.database import open_database
from common.migrations import migrate as migrate_database
from common.readiness import check_ready
from common.redis_marks import open_marks
from common.runtime import Application, Mounted
from payment_service.servicer import PaymentServicer
from payment_service.settings import PaymentSettings
from payment_service.tables import SCHEMA, answers
from payment_service.toss import TossGateway
from payment_service.use_cases import Payments
from tally.payment.v1 import payment_pb2_grpc

VERSIONS: Final = Path(__file__).parent / "migrations"


async def migrate(settings: PaymentSettings) -> None:
    """Bring the database to this release's schema."""
    url = settings.owner_database_url.get_secret_value()
    await migrate_database(url, VERSIONS, wait_s=settings.migrate_wait_s)


@asynccontextmanager
async def build(settings: PaymentSettings) -> AsyncIterator[Application]:
    """Open what the service needs; close it when the last call has ended."""
    async with (
        open_database(settings) as database,
        open_marks(settings.redis_url.get_secret_value()) as marks,
        aclosing(TossGateway(settings.toss())) as gateway,
    ):
        payments = Payments(
            database,
            gateway,
            marks,
            lease_s=settings.lease_s,
            resolve_concurrency=settings.resolve_concurrency,
        )
        resolver = payments.resolver
        beat = Work("payment_heartbeat", settings.lease_s / 3, lambda _: resolver.beat())
        sweep = Work("resolve", settings.resolve_interval_s, lambda _: resolver.sweep())
        # The heart beats until the last payment is done with: the grace is longer than the lease.
        async with in_background(database, beat):
            try:
                async with in_background(database, Answers(answers).kept_small(database), sweep):
                    yield Application(
                        services=[
                            Mounted(
                                payment_pb2_grpc.add_PaymentServiceServicer_to_server,
                                PaymentServicer(payments),
                                "tally.payment.v1.PaymentService",
                            )
                        ],
                        ready=partial(check_ready, database, schema=SCHEMA),
                    )
            finally:
                await payments.close(settings.grace_s)
