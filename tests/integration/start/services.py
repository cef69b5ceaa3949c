"""The four services as an operator starts them, and one question that each answers when it can."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.engine import make_url

from common.rpc.status import from_rpc_error
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tests.integration.start.process import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from tests.integration.start.process import Service

PASSWORD = "hunter2"
AWAY = "127.0.0.1:1"
"""Nothing listens there."""


@dataclass(frozen=True)
class Asked:
    """A call that needs the service's tables, and the reason it ends with on empty ones."""

    method: str
    request: Message
    reason: str = ""


QUESTIONS = {
    "balance": Asked(
        "/tally.balance.v1.BalanceService/GetBalance",
        balance_pb2.GetBalanceRequest(user_id="nobody", currency_code="KRW"),
        "ACCOUNT_NOT_FOUND",
    ),
    "coupon": Asked(
        "/tally.coupon.v1.CouponService/ListCampaigns", coupon_pb2.ListCampaignsRequest()
    ),
    "order": Asked("/tally.order.v1.ProductService/ListProducts", order_pb2.ListProductsRequest()),
    "payment": Asked(
        "/tally.payment.v1.PaymentService/ListPayments",
        payment_pb2.ListPaymentsRequest(user_id="nobody"),
    ),
}
SERVICES = tuple(QUESTIONS)


def environment(service: str, database_url: str) -> dict[str, str]:
    """What the service needs; whatever else it could reach is away."""
    away = {
        "order": {f"TALLY_ORDER_{peer}_ADDRESS": AWAY for peer in ("BALANCE", "COUPON", "PAYMENT")},
        "payment": {
            "TALLY_PAYMENT_GATEWAY_URL": f"http://{AWAY}",
            "TALLY_PAYMENT_GATEWAY_SECRET_KEY": PASSWORD,
        },
    }
    return {
        f"TALLY_{service.upper()}_DATABASE_URL": database_url,
        "TALLY_REDIS_URL": f"redis://:{PASSWORD}@{AWAY}/0",
        "TALLY_READINESS_INTERVAL_S": "0.1",
        **away.get(service, {}),
    }


class Client:
    """What a client and a probe see of one replica."""

    def __init__(self, service: str, channel: grpc.aio.Channel) -> None:
        self._asked = QUESTIONS[service]
        self._channel = channel
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    async def health(self, service: str = "") -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        told = (await self._health.Check(request, timeout=30)).status
        return health_pb2.HealthCheckResponse.ServingStatus.Name(told)

    async def reason(self) -> str:
        """How the question ends: a refusal's reason, or nothing."""
        ask: Any = self._channel.unary_unary(
            self._asked.method, request_serializer=lambda request: request.SerializeToString()
        )
        try:
            await ask(self._asked.request, timeout=30)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason or f"{error.code()}: {error.details()}"
        return ""

    async def serves(self) -> bool:
        """Whether the question ends as it does on empty tables."""
        return await self.reason() == self._asked.reason


@asynccontextmanager
async def client(service: str, port: int) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(service, channel)


@asynccontextmanager
async def started(service: str, url: str) -> AsyncIterator[tuple[Service, Client]]:
    given = environment(service, url)
    async with process(f"{service}_service", **given) as running:
        port = (await running.line("listening"))["port"]
        async with client(service, port) as asking:
            yield running, asking


async def assert_refuses(asking: Client) -> None:
    assert await asking.health() == "NOT_SERVING"
    assert await asking.health("liveness") == "SERVING"
    assert await asking.reason() == "REPLICA_NOT_READY"


async def assert_ends_well(running: Service, url: str) -> str:
    status, told = await running.stop()
    assert status == 0
    for secret in (PASSWORD, make_url(url).password or PASSWORD):
        assert secret not in told
    assert "Traceback" not in told
    assert "background_work_failed" not in told
    return told
