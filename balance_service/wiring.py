"""Builds the balance service and connects its layers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from balance_service.servicer import BalanceServicer
from balance_service.settings import BalanceSettings
from balance_service.tables import SCHEMA, answers
from balance_service.use_cases import Balances
from common.answers import Answers
from common.background import in_background
from common.database import open_database
from common.migrations import migrate as migrate_database
from common.readiness import check_ready
from common.redis_locks import open_locks
from common.runtime import Application, Mounted
from tally.balance.v1 import balance_pb2_grpc

VERSIONS: Final = Path(__file__).parent / "migrations"


async def migrate(settings: BalanceSettings) -> None:
    """Bring the database to this release's schema."""
    url = settings.owner_database_url.get_secret_value()
    await migrate_database(url, VERSIONS, wait_s=settings.migrate_wait_s)


@asynccontextmanager
async def build(settings: BalanceSettings) -> AsyncIterator[Application]:
    """Open what the service needs; close it when the last call has ended."""
    async with (
        open_database(settings) as database,
        open_locks(settings.redis_url.get_secret_value()) as locks,
    ):
        balances = Balances(database, locks)
        try:
            async with in_background(database, Answers(answers).kept_small(database)):
                yield Application(
                    services=[
                        Mounted(
                            balance_pb2_grpc.add_BalanceServiceServicer_to_server,
                            BalanceServicer(balances),
                            "tally.balance.v1.BalanceService",
                        )
                    ],
                    ready=partial(check_ready, database, schema=SCHEMA),
                )
        finally:
            await balances.lane.close()
