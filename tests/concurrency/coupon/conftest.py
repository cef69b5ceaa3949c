"""Three replicas of the coupon service for each test, with Redis and without."""

from __future__ import annotations

from coupon_service.settings import CouponSettings
from coupon_service.wiring import build
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tests.support.crowd import crowd_fixture

# More than two: a server accepts about a thousand new calls at once, and a sale has more.
crowd = crowd_fixture(
    "coupon", CouponServiceStub, CouponSettings, build, count=3, max_concurrent_calls=10_000
)
