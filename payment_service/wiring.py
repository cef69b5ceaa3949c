"""Builds the payment service and connects its layers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

from common.db.database import open_database
from common.db.errors import count_violations_of, failure_of
from common.db.heartbeat import heartbeat_job
from common.db.idempotency import IdempotencyStore
from common.db.readiness import check_ready
from common.locking.marks import open_marks
from common.service import Application, run_service_jobs
from common.tasks import PeriodicJob, run_periodic_jobs
from payment_service.gateway.toss import TossGateway
from payment_service.servicer import PaymentServicer
from payment_service.settings import PaymentSettings
from payment_service.store.figures import OPEN_PAYMENTS
from payment_service.tables import SCHEMA, answers, metadata
from payment_service.use_cases.payment import Payments
from payment_service.use_cases.recheck import INTERVAL_S as RECHECK_INTERVAL_S
from payment_service.use_cases.recheck import Recheck
from tally.payment.v1.payment_pb2_grpc import add_PaymentServiceServicer_to_server


@asynccontextmanager
async def build(settings: PaymentSettings) -> AsyncIterator[Application]:
    """Open what the service needs; close it when the last call has ended."""
    idempotency = IdempotencyStore(answers)
    count_violations_of(metadata)
    async with (
        open_database(settings) as database,
        open_marks(settings.redis_url.get_secret_value()) as marks,
        aclosing(TossGateway(settings.toss())) as gateway,
    ):
        payments = Payments(
            database,
            gateway,
            marks,
            idempotency,
            lease_s=settings.lease_s,
            confirm_window_s=settings.confirm_window_s,
            resolve_concurrency=settings.resolve_concurrency,
        )
        servicer = PaymentServicer(payments)
        resolver = payments.resolver
        renewal = PeriodicJob(
            "payment_heartbeat", settings.lease_s / 3, lambda _: resolver.renew_leases()
        )
        sweep = PeriodicJob("resolve", settings.resolve_interval_s, lambda _: resolver.sweep())
        recheck = Recheck(
            database,
            resolver,
            days=settings.recheck_days,
            confirm_window_s=settings.confirm_window_s,
        )
        jobs = [
            sweep,
            heartbeat_job(database),
            OPEN_PAYMENTS.job(database),
            PeriodicJob("recheck", RECHECK_INTERVAL_S, recheck.run),
        ]
        # Leases are renewed until the last payment is finished: the grace is longer than a lease.
        async with run_periodic_jobs(renewal, ready=database.checked, failure_of=failure_of):
            try:
                async with run_service_jobs(database, idempotency, *jobs):
                    yield Application(
                        services=[(add_PaymentServiceServicer_to_server, servicer)],
                        ready=partial(check_ready, database, schema=SCHEMA),
                    )
            finally:
                await payments.close(settings.grace_s)
