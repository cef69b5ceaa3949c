"""Two replicas of the balance service for each test, with Redis and without."""

from __future__ import annotations

from balance_service.settings import BalanceSettings
from balance_service.wiring import build
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tests.support.crowd import crowd_fixture

crowd = crowd_fixture("balance", BalanceServiceStub, BalanceSettings, build)
