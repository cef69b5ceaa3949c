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

from common.errors import Code
from common.rpc.channels import open_channel
from common.rpc.service_config import balanced, timeouts_s, without_timeouts
from common.rpc.status import from_rpc_error
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
_WITH_RETRY_INFO: Final = frozenset({Code.UNAVAILABLE, Code.ABORTED, Code.RESOURCE_EXHAUSTED})


@dataclass
class Record:
    """What became of the calls."""

    calls: int = 0
    failed: list[str] = field(default_factory=list)
    """A line for each call that ended with an error, its retries within gRPC included."""
    longest_s: dict[str, float] = field(default_factory=dict)
    """By method, the longest time from a request's first send to its success: what gRPC repeats by
    itself, and what is sent again under the same request_id, included."""
    replicas: Counter[str] = field(default_factory=Counter)
    """Answers by the replica that gave them."""

    def told(self) -> str:
        """The figures in one line."""
        failed = f"{len(self.failed)} failed {dict(self.codes) if self.failed else ''}".rstrip()
        longest = max(self.longest_s, key=lambda name: self.longest_s[name])
        return f"{self.calls:,} calls, {failed}, longest {longest} {self.longest_s[longest]:.2f} s"

    @property
    def codes(self) -> Counter[str]:
        """The calls that failed, by code."""
        return Counter(line.partition(":")[0] for line in self.failed)


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
        call = method(request, timeout=TIMEOUTS_S[method._method.decode()])
        try:
            response = await call
        finally:
            self.record.calls += 1
        self.record.replicas[replica_of(await call.trailing_metadata())] += 1
        return response

    async def insist(self, method: Any, request: Any) -> Any:
        """As ``call``, sent again, unchanged, until it is answered; how long that took is recorded.

        Only after what a correct client repeats: any other error is raised.
        """
        name = method._method.decode().rpartition("/")[2]
        started = time.monotonic()
        while True:
            try:
                response = await self.call(method, request)
            except grpc.aio.AioRpcError as error:
                self.record.failed.append(f"{error.code().name}: {name}: {error.details()}")
                if not _may_pass(error) or time.monotonic() - started > GIVE_UP_S:
                    raise
                await asyncio.sleep(AGAIN_S)
                continue
            took_s = time.monotonic() - started
            self.record.longest_s[name] = max(self.record.longest_s.get(name, 0.0), took_s)
            return response


def _may_pass(error: grpc.aio.AioRpcError) -> bool:
    """Whether a correct client sends the same request again.

    So it does when told when to come again, and when no replica said anything. That is
    UNAVAILABLE: gRPC's own INTERNAL, UNKNOWN or CANCELLED would be a failure that clients with the
    published config do not repeat.
    """
    refusal = from_rpc_error(error)
    if refusal.retry_after_s is not None:
        return refusal.code in _WITH_RETRY_INFO
    return refusal.code is Code.UNAVAILABLE and not refusal.reason


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
            # The C core's own time limits end early: see common.rpc.service_config.
            told = without_timeouts(config) if "methodConfig" in config else config
            channels[name] = open_channel(target, config=told)
            stack.push_async_callback(channels[name].close)
        yield Client(channels)
