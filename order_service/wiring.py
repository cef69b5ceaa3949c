"""Builds the order service and connects its layers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from common.background import periodically
from common.database import check_ready, open_database
from common.migrations import migrate as migrate_database
from common.redis_locks import open_locks
from common.runtime import Application, Mounted
from order_service.errors import OrderNotCancellable
from order_service.model.orders import CancelOrder, Order
from order_service.servicer.carts import CartServicer
from order_service.servicer.orders import OrderServicer
from order_service.servicer.products import ProductServicer
from order_service.settings import OrderSettings
from order_service.tables import SCHEMA
from order_service.use_cases.carts import Carts
from order_service.use_cases.order_lane import Batch, OrderLane
from order_service.use_cases.orders import Orders
from order_service.use_cases.products import Products
from order_service.use_cases.watches import Watches
from tally.order.v1 import order_pb2_grpc

VERSIONS: Final = Path(__file__).parent / "migrations"
CLEAN_UP_S: Final = 600.0
WATCH_S: Final = 0.25
"""How late a follower of an order hears what another replica did to it, at most and about."""


async def migrate(settings: OrderSettings) -> None:
    """Bring the database to this release's schema."""
    await migrate_database(settings.owner_database_url.get_secret_value(), VERSIONS)


@asynccontextmanager
async def build(settings: OrderSettings) -> AsyncIterator[Application]:
    """Open what the service needs; close it when the last call has ended."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        locks = await stack.enter_async_context(open_locks(settings.redis_url.get_secret_value()))
        lane = OrderLane(database, locks)
        stack.push_async_callback(lane.close)
        watches = Watches(database)
        orders = Orders(
            database,
            lane,
            watches,
            expiry=timedelta(seconds=settings.order_expiry_s),
            begin_cancel=_not_cancellable,
        )
        products = Products(database, locks)
        stack.push_async_callback(products.lane.close)
        for name, interval_s, work in (
            ("clean_up_answers", CLEAN_UP_S, lane.clean_up),
            ("expire_orders", settings.expiry_interval_s, orders.expire_due),
            ("watch_orders", WATCH_S, watches.poll),
        ):
            await stack.enter_async_context(periodically(name, interval_s, work))
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
                    OrderServicer(orders, cast("Any", orders)),
                    "tally.order.v1.OrderService",
                ),
            ],
            ready=partial(check_ready, database, schema=SCHEMA),
        )


def _not_cancellable(_batch: Batch, _command: CancelOrder, order: Order) -> Order:
    raise OrderNotCancellable(order_id=order.order_id)
