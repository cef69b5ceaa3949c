"""Builds the order service and connects its layers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Final

from common.db.database import Database, open_database
from common.db.errors import count_violations_of
from common.db.heartbeat import heartbeat_job
from common.db.idempotency import IdempotencyStore
from common.db.readiness import check_ready
from common.identity.service_token import REFRESH_S
from common.locking.redis_lock import open_locks
from common.service import Application, run_service_jobs
from common.tasks import PeriodicJob
from order_service.clients import Services, open_services
from order_service.model.order import Order
from order_service.model.saga import Saga
from order_service.model.saga_command import CloseSaga, NoteFailure
from order_service.saga.journal import SagaJournal
from order_service.saga.payment_poll import POLL_S, PaymentPoll
from order_service.saga.runner import RENEWAL_PARTS, Runner
from order_service.saga.running import SagaLimits
from order_service.servicer.cart import CartServicer
from order_service.servicer.order import OrderServicer
from order_service.servicer.product import ProductServicer
from order_service.servicer.saga import SagaServicer
from order_service.servicer.seat import SeatServicer
from order_service.settings import OrderSettings
from order_service.store.figures import ACTIVE_SAGAS
from order_service.tables import SCHEMA, answers, metadata
from order_service.use_cases.cart import Carts
from order_service.use_cases.order import Orders
from order_service.use_cases.order_decider import OrderDecider, OrderTimes
from order_service.use_cases.order_lane import OrderLane
from order_service.use_cases.product import Products
from order_service.use_cases.saga import Sagas
from order_service.use_cases.seat import Seats, TakenSeats
from order_service.use_cases.seat_watch import SeatWatches
from order_service.use_cases.watch import Watches
from tally.order.v1.order_pb2_grpc import (
    add_CartServiceServicer_to_server,
    add_OrderServiceServicer_to_server,
    add_ProductServiceServicer_to_server,
    add_SagaServiceServicer_to_server,
    add_SeatServiceServicer_to_server,
)

WATCH_S: Final = 0.25
"""How late, about, a follower of an order or of seats gets a change that another replica made."""


@asynccontextmanager
async def build(settings: OrderSettings) -> AsyncIterator[Application]:
    """Open what the service needs; close it, last first, when the last call has ended."""
    idempotency = IdempotencyStore(answers)
    count_violations_of(metadata)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        locks = await stack.enter_async_context(open_locks(settings.redis_url.get_secret_value()))
        watches = Watches(database)
        # WatchOrder has the other half of the slots for streams.
        seat_watches = SeatWatches(database, streams_max=max(1, settings.max_concurrent_calls // 2))
        stack.push_async_callback(seat_watches.close)
        lane = OrderLane(
            database,
            locks,
            _decider(settings, idempotency),
            on_change=_both(watches.report, seat_watches.report),
            taken_seats=TakenSeats(database, idempotency),
        )
        stack.push_async_callback(lane.close)
        products = Products(
            database,
            locks,
            idempotency,
            cache_s=settings.product_cache_s,
            on_seats=seat_watches.report_product,
        )
        stack.push_async_callback(products.close)
        carts = Carts(database)
        stack.push_async_callback(carts.close)
        services, runner, saga_jobs = await stack.enter_async_context(
            _open_sagas(settings, database, lane)
        )
        orders = Orders(database, lane, runner, watches, idempotency)
        stack.push_async_callback(orders.close, settings.grace_s)
        sagas = Sagas(database, lane, services, idempotency)
        await stack.enter_async_context(
            run_service_jobs(
                database,
                idempotency,
                heartbeat_job(database),
                ACTIVE_SAGAS.job(database),
                *saga_jobs,
                PeriodicJob("expire_orders", settings.expiry_interval_s, orders.expire_due),
                PeriodicJob("watch_orders", WATCH_S, lambda _: watches.poll()),
                PeriodicJob("watch_seats", WATCH_S, lambda _: seat_watches.poll()),
            )
        )
        yield Application(
            services=[
                (add_ProductServiceServicer_to_server, ProductServicer(products)),
                (
                    add_SeatServiceServicer_to_server,
                    SeatServicer(Seats(database, products), seat_watches),
                ),
                (add_CartServiceServicer_to_server, CartServicer(carts)),
                (add_OrderServiceServicer_to_server, OrderServicer(orders)),
                (add_SagaServiceServicer_to_server, SagaServicer(sagas)),
            ],
            ready=partial(check_ready, database, schema=SCHEMA),
        )


@asynccontextmanager
async def _open_sagas(
    settings: OrderSettings, database: Database, lane: OrderLane
) -> AsyncIterator[tuple[Services, Runner, list[PeriodicJob]]]:
    """The other services, what runs sagas on them, and its jobs, for the caller to run.

    At the end of the block the runner hands its sagas over, and the channels are closed.
    """
    token = settings.service_token()
    journal = _journal(settings, database, lane)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(journal.lane.close)
        services = await stack.enter_async_context(open_services(settings, token))
        runner = Runner(services, journal, _limits(settings))
        stack.push_async_callback(runner.hand_over)
        poll = PaymentPoll(services, journal)
        renewal_s = settings.saga_lease_s / RENEWAL_PARTS
        jobs = [
            PeriodicJob("saga_heartbeat", renewal_s, lambda _: runner.beat()),
            PeriodicJob("saga_sweep", settings.saga_sweep_interval_s, runner.sweep),
            PeriodicJob("saga_payments", POLL_S, lambda _: poll.poll()),
        ]
        if token is not None:
            jobs.append(PeriodicJob("service_token", REFRESH_S, lambda _: token.read_again()))
        yield services, runner, jobs


def _both(*calls: Callable[[Order], None]) -> Callable[[Order], None]:
    def report(order: Order) -> None:
        for call in calls:
            call(order)

    return report


def _decider(settings: OrderSettings, idempotency: IdempotencyStore) -> OrderDecider:
    times = OrderTimes(
        expiry=timedelta(seconds=settings.order_expiry_s),
        pay_within_s=settings.pay_within_s,
        saga_lease_s=settings.saga_lease_s,
    )
    return OrderDecider(
        idempotency, times, owner=settings.replica, open_orders_max=settings.open_orders_max
    )


def _limits(settings: OrderSettings) -> SagaLimits:
    return SagaLimits(
        lease_s=settings.saga_lease_s,
        running_max=settings.saga_running_max,
        attention_s=settings.saga_attention_s,
        backoff_max_s=settings.saga_backoff_max_s,
    )


def _journal(settings: OrderSettings, database: Database, lane: OrderLane) -> SagaJournal:
    async def close(saga: Saga) -> Order:
        return (await lane.submit(CloseSaga(saga))).value

    async def note(saga: Saga, reason: str) -> Order:
        return (await lane.submit(NoteFailure(saga, reason))).value

    return SagaJournal(database, owner=settings.replica, close=close, note=note)
