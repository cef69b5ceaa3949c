"""The read of taken seats before a batch takes locks: it saves work, and fails no command."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from order_service.store import seat as seat_store
from tests.support.orders import Shop
from tests.support.refusals import refused
from tests.support.seats import labels, order_seats, seated


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
