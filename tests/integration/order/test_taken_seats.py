"""The read of taken seats before a batch takes locks: it saves work, and fails no command."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from common.db.database import open_pools
from common.db.idempotency import IdempotencyStore
from deploy.local.postgres_roles import ServiceUrls
from order_service.model.order import CreateOrder, Line
from order_service.store import seat as seat_store
from order_service.tables import answers
from order_service.use_cases import seat
from tests.support.orders import UNKNOWN_ID, Shop
from tests.support.refusals import refused
from tests.support.seats import labels, order_seats, seated
from tests.support.time_limits import LONG_S


async def test_a_read_that_fails_refuses_no_order_of_its_batch(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Payments may be in that batch too."""

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    show = await seated(shop, labels(1))
    monkeypatch.setattr(seat_store, "find_taken", fail)
    with capture_logs() as logged:
        await shop.orders.CreateOrder(order_seats("ann", {show: labels(1)}))
        with refused("SEAT_TAKEN"):
            await shop.orders.CreateOrder(order_seats("bob", {show: labels(1)}))
    assert ("taken_seats_not_read", "ZeroDivisionError()") in [
        (line["event"], line.get("error")) for line in logged
    ]


@pytest.mark.parametrize(("pause_s", "made"), [(60.0, 1), (0.0, 3)], ids=["pause", "none"])
async def test_after_a_read_that_failed_none_is_made_for_a_while(
    order_database: ServiceUrls, monkeypatch: pytest.MonkeyPatch, pause_s: float, made: int
) -> None:
    reads = 0

    async def fail(*_: object) -> None:
        nonlocal reads
        reads += 1
        raise ZeroDivisionError

    monkeypatch.setattr(seat_store, "find_taken", fail)
    monkeypatch.setattr(seat, "PAUSE_S", pause_s)
    monkeypatch.setattr(seat, "READ_S", LONG_S)
    database = open_pools(order_database.runtime, application_name="early", pool_size=3)
    taken = seat.TakenSeats(database, IdempotencyStore(answers))
    order = CreateOrder("ann", (Line(UNKNOWN_ID, 1, ("A-1",)),), "o1")
    for _ in range(3):
        assert await taken([order]) == {}
    assert reads == made
    await database.close()
