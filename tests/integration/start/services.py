"""The four services as an operator starts them, and one call that each of them can answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.engine import make_url

from common.rpc.status import from_rpc_error
from tests.integration.start.process import Service, process
from tests.support.contract import METHODS_BY_NAME, message_class

PASSWORD = "hunter2"
AWAY = "127.0.0.1:1"
"""Nothing listens there."""
USAGE, FAILED = 2, 1


CALLS: dict[str, tuple[str, dict[str, str], str]] = {
    "balance": ("GetBalance", {"user_id": "nobody", "currency_code": "KRW"}, "ACCOUNT_NOT_FOUND"),
    "coupon": ("ListCampaigns", {}, ""),
    "order": ("ListProducts", {}, ""),
    "payment": ("ListPayments", {"user_id": "nobody"}, ""),
}
"""A call that needs the service's tables: its method, its fields, its reason on empty tables."""
SERVICES = tuple(CALLS)
every_service = pytest.mark.parametrize("service", SERVICES)


def variable(service: str, name: str = "DATABASE_URL") -> str:
    return f"TALLY_{service.upper()}_{name}"


def database_of(url: str) -> str:
    return make_url(url).database or ""


def server_of(url: str) -> str:
    return f"127.0.0.1:{make_url(url).port}"


def at_port(url: str, port: int) -> str:
    """The URL by way of a proxy on this port."""
    return make_url(url).set(port=port).render_as_string(hide_password=False)


def with_password(url: str) -> str:
    """The URL with a wrong password."""
    return make_url(url).set(password=PASSWORD).render_as_string(hide_password=False)


def environment(service: str, database_url: str) -> dict[str, str]:
    """What the service needs. Whatever else it uses is away."""
    away = {
        "order": {f"TALLY_ORDER_{peer}_ADDRESS": AWAY for peer in ("BALANCE", "COUPON", "PAYMENT")},
        "payment": {
            "TALLY_PAYMENT_GATEWAY_URL": f"http://{AWAY}",
            "TALLY_PAYMENT_GATEWAY_SECRET_KEY": PASSWORD,
        },
    }
    return {
        variable(service): database_url,
        "TALLY_REDIS_URL": f"redis://:{PASSWORD}@{AWAY}/0",
        "TALLY_READINESS_INTERVAL_S": "0.1",
        **away.get(service, {}),
    }


class Client:
    """A client of one replica, which also checks its health."""

    def __init__(self, service: str, channel: grpc.aio.Channel) -> None:
        name, fields, self._reason = CALLS[service]
        method = METHODS_BY_NAME[name]
        self._request = message_class(method.input_type)(**fields)
        self._call: Any = channel.unary_unary(
            f"/{method.containing_service.full_name}/{name}",
            request_serializer=lambda request: request.SerializeToString(),
        )
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    async def health(self, service: str = "") -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        status = (await self._health.Check(request, timeout=30)).status
        return health_pb2.HealthCheckResponse.ServingStatus.Name(status)

    async def reason(self) -> str:
        """The reason of the service's call, or '' if it succeeds."""
        try:
            await self._call(self._request, timeout=30)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason or f"{error.code()}: {error.details()}"
        return ""

    async def assert_serves(self) -> None:
        assert await self.reason() == self._reason

    async def assert_refuses(self) -> None:
        assert await self.health() == "NOT_SERVING"
        assert await self.health("liveness") == "SERVING"
        assert await self.reason() == "REPLICA_NOT_READY"


@asynccontextmanager
async def client(service: str, port: int) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(service, channel)


@asynccontextmanager
async def started(service: str, url: str, **settings: str) -> AsyncIterator[tuple[Service, Client]]:
    """A replica, and a client of it. At its end it has exited with 0 and logged no secret."""
    given = environment(service, url) | settings
    async with process(f"{service}_service", **given) as running:
        port = (await running.line("listening"))["port"]
        async with client(service, port) as calling:
            yield running, calling
        status, log = await running.stop()
        assert status == 0
        for secret in (PASSWORD, make_url(url).password or PASSWORD):
            assert secret not in log
        assert "Traceback" not in log
        failed = [line for line in log.splitlines() if '"background_work_failed"' in line]
        assert all("DATABASE_UNAVAILABLE" in line for line in failed), failed


async def last_line(
    service: str, status: int, given: dict[str, str], *arguments: str, url: str = ""
) -> str:
    """The last line of a process that ends by itself with ``status``, without any secret."""
    whole = environment(service, url) | given
    async with process(f"{service}_service", *arguments, **whole) as running:
        ended, log = await running.end()
    assert ended == status, log
    for text in (PASSWORD, "Traceback", '"critical"', '"listening"'):
        assert text not in log
    for value in given.values():
        assert "@" not in value or (make_url(value).password or "?") not in log
    return log.splitlines()[-1]
