"""A client that never reopens its channels, and a record of every call that it made."""

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
from common.rpc.status import from_rpc_error
from deploy.local.plan import PROJECT
from tally.balance.v1.balance_pb2_grpc import BalanceServiceStub
from tally.coupon.v1.coupon_pb2_grpc import CouponServiceStub
from tally.order.v1.order_pb2_grpc import OrderServiceStub, ProductServiceStub
from tally.payment.v1.payment_pb2_grpc import PaymentServiceStub
from tally_client.rpc.channels import open_channel
from tally_client.rpc.service_config import balanced, timeouts_s, without_timeouts
from tests.support.cluster import Cluster

PUBLISHED: Final = json.loads((PROJECT / "protos" / "service_config.json").read_text())
PLAIN: Final = balanced()
"""Round robin over the replicas that serve, without retries."""
TIMEOUTS_S: Final = timeouts_s(PUBLISHED)
AGAIN_S: Final = 0.1
GIVE_UP_S: Final = 90.0
_WITH_RETRY_INFO: Final = frozenset({Code.UNAVAILABLE, Code.ABORTED, Code.RESOURCE_EXHAUSTED})


@dataclass
class Record:
    """The outcomes of calls."""

    calls: int = 0
    failed: list[str] = field(default_factory=list)
    """A line for each call that ended with an error, its retries within gRPC included."""
    longest_s: dict[str, float] = field(default_factory=dict)
    """By method, the longest time from a request's first send to its success, with gRPC's own
    retries and those under the same request_id."""
    replicas: Counter[str] = field(default_factory=Counter)
    """Responses by the replica that sent them."""

    def summary(self) -> str:
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
        """As ``call``, sent again unchanged until it succeeds; the time until then is recorded.

        Errors after which a correct client does not send the request again are raised.
        """
        name = method._method.decode().rpartition("/")[2]
        started = time.monotonic()
        while True:
            try:
                response = await self.call(method, request)
            except grpc.aio.AioRpcError as error:
                self.record.failed.append(f"{error.code().name}: {name}: {error.details()}")
                if not _is_retryable(error) or time.monotonic() - started > GIVE_UP_S:
                    raise
                await asyncio.sleep(AGAIN_S)
                continue
            took_s = time.monotonic() - started
            self.record.longest_s[name] = max(self.record.longest_s.get(name, 0.0), took_s)
            return response


def _is_retryable(error: grpc.aio.AioRpcError) -> bool:
    """Whether a correct client sends the same request again.

    It does after a RetryInfo, and after UNAVAILABLE without a reason, where no replica replied.
    gRPC's own INTERNAL, UNKNOWN or CANCELLED would be a failure: clients with the published config
    do not retry them.
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
            # The C core's own time limits end early: see tally_client.rpc.service_config.
            own = without_timeouts(config) if "methodConfig" in config else config
            channels[name] = open_channel(target, config=own)
            stack.push_async_callback(channels[name].close)
        yield Client(channels)
