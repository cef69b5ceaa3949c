"""Seats before a large crowd on four replicas; the short form is in tests/concurrency."""

from __future__ import annotations

import pytest

from deploy.local.valkey import ValkeyServer
from order_service.settings import OrderSettings
from order_service.wiring import build
from tests.support.crowd import RIVALS, Crowd, crowd_fixture
from tests.support.orders import Shop
from tests.support.seat_sale import assert_consistent, sell_blocks, want_one
from tests.support.seats import labels, seated

crowd = crowd_fixture(
    *("order", Shop.at, OrderSettings, build),
    count=4,
    max_concurrent_calls=10_000,
    expiry_interval_s=60,
)


@pytest.fixture(params=["redis", "no-redis"])
def redis_url(request: pytest.FixtureRequest) -> str:
    """The first line of defence must change no outcome, and must not be needed."""
    if request.param == "no-redis":
        return ""
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    return server.url


async def test_a_thousand_users_buy_three_hundred_seats(crowd: Crowd[Shop]) -> None:
    """In blocks of 1 to 4 neighbours, which half of them name backwards."""
    await sell_blocks(crowd, count=300, users=1_000)


async def test_of_a_hundred_users_one_gets_the_seat(crowd: Crowd[Shop]) -> None:
    show = await seated(crowd.turn(0), labels(2))
    made, refusals = await want_one(crowd, show, "A-0001", RIVALS)
    assert (len(made), refusals) == (1, {"SEAT_TAKEN": RIVALS - 1})
    assert_consistent(crowd, show, 1)
