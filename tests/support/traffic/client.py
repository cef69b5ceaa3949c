"""A client that keeps its channels for ever, and a record of every call that it made."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from common.clients import open_channel
from common.service_config import balanced, timeouts_s, without_timeouts
from deploy.local.plan import PROJECT
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.order.v1.order_pb2_grpc import OrderServiceStub, ProductServiceStub
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub
from tests.support.cluster import Cluster

PUBLISHED: Final = json.loads((PROJECT / "protos" / "service_config.json").read_text())
PLAIN: Final = balanced()
"""Turns over the replicas that serve, and nothing repeated."""
TIMEOUTS_S: Final = timeouts_s(PUBLISHED)
AGAIN_S: Final = 0.1
GIVE_UP_S: Final = 90.0
MAY_PASS: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    }
)
"""Codes after which the same request is sent again; any other says what the test did wrong."""


@dataclass
class Record:
    """What became of the calls."""

    calls: int = 0
    failed: list[str] = field(default_factory=list)
    """A line for each call that ended with an error, its retries within gRPC included."""
    longest_failure_s: float = 0.0
    """From the first error of a request to its success, with the same request_id."""
    slowest_s: float = 0.0
    replicas: Counter[str] = field(default_factory=Counter)
    """Answers by the replica that gave them."""

    def told(self) -> str:
        """The figures in one line."""
        codes = Counter(line.partition(":")[0] for line in self.failed)
        return (
            f"{self.calls:,} calls, {len(self.failed)} failed {dict(codes) if codes else ''}"
            f" longest failure {self.longest_failure_s:.2f} s, slowest call {self.slowest_s:.2f} s"
        )


class Client:
    """Stubs of every service, each over one channel, opened by ``opened``."""

    def __init__(self, channels: Mapping[str, grpc.aio.Channel]) -> None:
        self.balance = BalanceServiceStub(channels["balance"])
        self.coupon = CouponServiceStub(channels["coupon"])
        self.products = ProductServiceStub(channels["order"])
        self.orders = OrderServiceStub(channels["order"])
        self.payment = PaymentServiceStub(channels["payment"])
        self.record = Record()

    async def call(self, method: Any, request: Any) -> Any:
        """The response to one call, within the published time limit; recorded."""
        started = time.monotonic()
        call = method(request, timeout=TIMEOUTS_S[method._method.decode()])
        try:
            response = await call
        finally:
            self.record.calls += 1
            self.record.slowest_s = max(self.record.slowest_s, time.monotonic() - started)
        self.record.replicas[replica_of(await call.trailing_metadata())] += 1
        return response

    async def insist(self, method: Any, request: Any) -> Any:
        """As ``call``, sent again, unchanged, until it is answered."""
        first_error: float | None = None
        while True:
            try:
                response = await self.call(method, request)
            except grpc.aio.AioRpcError as error:
                now = time.monotonic()
                first_error = first_error or now
                name = method._method.decode().rpartition("/")[2]
                self.record.failed.append(f"{error.code().name}: {name}: {error.details()}")
                if error.code() not in MAY_PASS or now - first_error > GIVE_UP_S:
                    raise
                await asyncio.sleep(AGAIN_S)
                continue
            if first_error is not None:
                lasted_s = time.monotonic() - first_error
                self.record.longest_failure_s = max(self.record.longest_failure_s, lasted_s)
            return response


def replica_of(trailing: Any) -> str:
    """The replica that a call's trailing metadata names."""
    return str(dict(trailing)["tally-replica"])


@asynccontextmanager
async def opened(cluster: Cluster, config: Mapping[str, Any] = PUBLISHED) -> AsyncIterator[Client]:
    """A client whose channels find the services by the cluster's DNS and are never reopened."""
    async with AsyncExitStack() as stack:
        channels = {}
        for name in ("balance", "coupon", "order", "payment"):
            target = cluster.target(f"{name}-headless")
            # The C core's own time limits end early: see common.service_config.
            told = without_timeouts(config) if "methodConfig" in config else config
            channels[name] = open_channel(target, config=told)
            stack.push_async_callback(channels[name].close)
        yield Client(channels)
