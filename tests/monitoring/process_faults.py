"""Faults of processes and of what they depend on. Each lasts as long as its block."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tests.faults.stack import beside
from tests.monitoring.postgres_faults import crash
from tests.monitoring.watched import Watched

STOPPED_S: Final = 0.3
RUNNING_S: Final = 0.2
CONFIRMED: Final = 'ALERTS{alertname="TallyPostgresDown",alertstate="firing",confirmed="yes"}'
"""The services do not reach the server either: what follows from it is not sent."""


@asynccontextmanager
async def without_redis(watched: Watched) -> AsyncIterator[None]:
    watched.stack.kill_redis()
    try:
        yield
    finally:
        watched.stack.redis.start()


@asynccontextmanager
async def without_gateway(watched: Watched) -> AsyncIterator[None]:
    """It dies while it charges cards: nobody knows whether it did."""
    watched.card = "slow_"
    await asyncio.sleep(2.0)
    # A charge that never reached the gateway and was cancelled stays unknown until its key expires,
    # for its confirm may be in transit. These reach it, and wait there.
    watched.card = None
    await asyncio.sleep(1.0)
    watched.stack.gateway.kill()
    watched.card = "good_"
    try:
        yield
    finally:
        watched.stack.gateway.start()


@asynccontextmanager
async def replica_killed(watched: Watched) -> AsyncIterator[None]:
    child = watched.stack.replicas[watched.stack.plan.addresses("coupon")[1]]
    child.stop(signal.SIGKILL)
    try:
        yield
    finally:
        watched.stack.restart_dead()


@asynccontextmanager
async def balance_paused(watched: Watched) -> AsyncIterator[None]:
    """While cards are declined: what orders took from balances cannot be given back."""
    watched.card = "decline_"
    await asyncio.sleep(1.0)
    watched.stack.signal("balance", signal.SIGSTOP)
    try:
        yield
    finally:
        watched.stack.signal("balance", signal.SIGCONT)
        watched.card = "good_"


@asynccontextmanager
async def database_away(watched: Watched) -> AsyncIterator[None]:
    """The server refuses the coupon service, as one that is in recovery does."""
    async with watched.superuser("coupon") as session:
        await session.execute("ALTER DATABASE tally_coupon CONNECTION LIMIT 0")
        await session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = 'tally_coupon' AND pid <> pg_backend_pid()"
        )
        try:
            yield
        finally:
            await session.execute("ALTER DATABASE tally_coupon CONNECTION LIMIT -1")


@asynccontextmanager
async def server_away(watched: Watched) -> AsyncIterator[None]:
    """PostgreSQL crashes, and is started later."""
    crash(watched.stack.postgres)
    try:
        assert await watched.until_holds(CONFIRMED)
        yield
    finally:
        # In this thread, which lives as long as the server.
        watched.stack.postgres.start()


@asynccontextmanager
async def audit_stopped(watched: Watched) -> AsyncIterator[None]:
    """The audit's process hangs."""
    assert watched.audit.child is not None
    watched.audit.child.send(signal.SIGSTOP)
    try:
        yield
    finally:
        watched.audit.child.send(signal.SIGCONT)


@asynccontextmanager
async def audit_refused(watched: Watched) -> AsyncIterator[None]:
    """A database refuses the audit's role, as one that was restored without its roles does."""
    async with watched.superuser("coupon") as session:
        await session.execute("ALTER ROLE tally_coupon_audit NOLOGIN")
        watched.audit_all()
        try:
            yield
        finally:
            await session.execute("ALTER ROLE tally_coupon_audit LOGIN")


@asynccontextmanager
async def process_throttled(watched: Watched) -> AsyncIterator[None]:
    """A replica gets the processor for a part of the time only, as under a low limit."""
    child = watched.stack.replicas[watched.stack.plan.addresses("coupon")[0]]

    async def throttle() -> None:
        while True:
            child.send(signal.SIGSTOP)
            await asyncio.sleep(STOPPED_S)
            child.send(signal.SIGCONT)
            await asyncio.sleep(RUNNING_S)

    try:
        async with beside(throttle()):
            yield
    finally:
        child.send(signal.SIGCONT)


@asynccontextmanager
async def pause_file_wrong(watched: Watched) -> AsyncIterator[None]:
    """A person misspells the method that is to be paused."""
    watched.pause_file.write_text("tally.order.v1.OrderService/CreateOrders\n")
    try:
        yield
    finally:
        watched.pause_file.unlink()
