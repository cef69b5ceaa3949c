"""Builds the balance service and connects its layers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from balance_service.servicer import BalanceServicer
from balance_service.settings import BalanceSettings
from balance_service.tables import SCHEMA, answers, metadata
from balance_service.use_cases import Accounts
from common.db.database import open_database
from common.db.errors import count_violations_of
from common.db.idempotency import IdempotencyStore
from common.db.readiness import check_ready
from common.locking.redis_lock import open_locks
from common.service import Application, run_service_jobs
from tally.balance.v1.balance_pb2_grpc import add_BalanceServiceServicer_to_server


@asynccontextmanager
async def build(settings: BalanceSettings) -> AsyncIterator[Application]:
    """Open what the service needs; close it when the last call has ended."""
    idempotency = IdempotencyStore(answers)
    count_violations_of(metadata)
    async with (
        open_database(settings) as database,
        open_locks(settings.redis_url.get_secret_value()) as locks,
    ):
        accounts = Accounts(database, locks, idempotency)
        try:
            async with run_service_jobs(database, idempotency):
                yield Application(
                    services=[(add_BalanceServiceServicer_to_server, BalanceServicer(accounts))],
                    ready=partial(check_ready, database, schema=SCHEMA),
                )
        finally:
            await accounts.close()
