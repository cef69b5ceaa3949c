"""Two replicas of the order service for each test, with Redis and without."""

from __future__ import annotations

from order_service.settings import OrderSettings
from order_service.wiring import build
from tests.support.crowd import crowd_fixture
from tests.support.orders import Shop

# Only the test itself sweeps.
crowd = crowd_fixture(
    "order", Shop.at, OrderSettings, build, max_concurrent_calls=10_000, expiry_interval_s=60
)
