"""Builds the order service and connects its layers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

from common.db.engines import open_database
from common.db.idempotency import IdempotencyStore
from common.db.migrations import migrate as migrate_database
from common.db.readiness import check_ready
from common.locking.redis_lock import open_locks
from common.service import Application, Mounted
from common.tasks import PeriodicJob, run_periodic_jobs
from order_service.clients import open_services
from order_service.model.saga_commands import CloseSaga
from order_service.saga_journal import SagaJournal
from order_service.saga_runner import Runner, SagaLimits
from order_service.servicer.carts import CartServicer
from order_service.servicer.orders import OrderServicer
from order_service.servicer.products import ProductServicer
from order_service.servicer.sagas import SagaServicer
from order_service.settings import OrderSettings
from order_service.tables import SCHEMA, answers
from order_service.use_cases.carts import Carts
from order_service.use_cases.order_lane import OrderLane
from order_service.use_cases.orders import Orders
from order_service.use_cases.payments import Payments
from order_service.use_cases.products import Products
from order_service.use_cases.saga_moves import SagaMoves
from order_service.use_cases.sagas import Sagas
from order_service.use_cases.watches import Watches
from tally.order.v1 import order_pb2_grpc

VERSIONS: Final = Path(__file__).parent / "migrations"
WATCH_S: Final = 0.25
"""How late a follower of an order hears what another replica did to it, at most and about."""


async def migrate(settings: OrderSettings) -> None:
    """Bring the database to this release's schema."""
    url = settings.owner_database_url.get_secret_value()
    await migrate_database(url, VERSIONS, wait_s=settings.migrate_wait_s)


@asynccontextmanager
async def build(settings: OrderSettings) -> AsyncIterator[Application]:
    """Open what the service needs; close it when the last call has ended."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        locks = await stack.enter_async_context(open_locks(settings.redis_url.get_secret_value()))
        lane = OrderLane(database, locks)
        stack.push_async_callback(lane.close)
        watches = Watches(database)
        limits = SagaLimits(
            lease_s=settings.saga_lease_s,
            running_max=settings.saga_running_max,
            attempts_max=settings.saga_attempts_max,
            backoff_max_s=settings.saga_backoff_max_s,
        )
        moves = SagaMoves(
            lane,
            owner=settings.replica,
            lease_s=settings.saga_lease_s,
            pay_within_s=settings.pay_within_s,
        )
        orders = Orders(
            database,
            lane,
            watches,
            expiry=timedelta(seconds=settings.order_expiry_s),
            begin_cancel=moves.begin_cancel,
        )
        products = Products(database, locks)
        stack.push_async_callback(products.lane.close)
        journal = SagaJournal(
            database,
            owner=settings.replica,
            close=lambda saga: lane.submit(CloseSaga(saga)),
        )
        stack.push_async_callback(journal.lane.close)
        services = await stack.enter_async_context(open_services(settings))
        runner = Runner(services, journal, limits)
        stack.push_async_callback(runner.hand_over)
        payments = Payments(lane, orders, watches, moves, runner)
        stack.push_async_callback(payments.close, settings.grace_s)
        background = run_periodic_jobs(
            database,
            PeriodicJob("saga_heartbeat", settings.saga_lease_s / 3, lambda _: runner.beat()),
            PeriodicJob("saga_sweep", settings.saga_sweep_interval_s, runner.sweep),
            PeriodicJob("expire_orders", settings.expiry_interval_s, orders.expire_due),
            PeriodicJob("watch_orders", WATCH_S, lambda _: watches.poll()),
            IdempotencyStore(answers).kept_small(database),
        )
        await stack.enter_async_context(background)
        yield Application(
            services=[
                Mounted(
                    order_pb2_grpc.add_ProductServiceServicer_to_server,
                    ProductServicer(products),
                    "tally.order.v1.ProductService",
                ),
                Mounted(
                    order_pb2_grpc.add_CartServiceServicer_to_server,
                    CartServicer(Carts(database)),
                    "tally.order.v1.CartService",
                ),
                Mounted(
                    order_pb2_grpc.add_OrderServiceServicer_to_server,
                    OrderServicer(orders, payments),
                    "tally.order.v1.OrderService",
                ),
                Mounted(
                    order_pb2_grpc.add_SagaServiceServicer_to_server,
                    SagaServicer(Sagas(database, lane)),
                    "tally.order.v1.SagaService",
                ),
            ],
            ready=partial(check_ready, database, schema=SCHEMA),
        )
