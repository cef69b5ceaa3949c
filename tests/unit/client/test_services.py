"""The client refuses calls that it cannot send, and waits as its policy says before others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor

from tally.coupon.v1.coupon_pb2 import GetCouponRequest
from tally.order.v1.order_pb2 import GetOrderRequest, WatchOrderRequest
from tally_client import (
    ClientClosed,
    DeadlineExceeded,
    NoAnswer,
    NotConnected,
    Tally,
    TallyError,
    policy,
)
from tally_client.calls import Listing, Unary, Watch
from tests.support.contract import METHODS, every_method, is_list
from tests.support.contract_gaps import attributes_of


@pytest_asyncio.fixture
async def tally() -> AsyncIterator[Tally]:
    """A client of the order service, at an address where nothing listens."""
    async with Tally(order="127.0.0.1:1") as opened:
        yield opened


@every_method
async def test_every_method_is_callable(method: MethodDescriptor, tally: Tally) -> None:
    service, name = attributes_of(method)
    found: Any = getattr(getattr(tally, service), name)
    assert found.path == f"/{method.containing_service.full_name}/{method.name}"
    assert type(found) is (
        Watch if method.server_streaming else Listing if is_list(method) else Unary
    )
    assert (found.timeout_s is None) is method.server_streaming


async def test_client_has_no_other_methods(tally: Tally) -> None:
    found = [
        (service, name)
        for service, methods in vars(tally).items()
        if not service.startswith("_")
        for name in vars(methods)
        if not name.startswith("_")
    ]
    assert sorted(found) == sorted(attributes_of(method) for method in METHODS)


async def test_service_without_an_address_is_not_connected(tally: Tally) -> None:
    with pytest.raises(NotConnected, match="coupon"):
        await tally.coupon.get_coupon(GetCouponRequest(coupon_id="c", user_id="ada"))


@pytest.mark.parametrize("target", ["", "no-port", ["a:1", "b:2"], []])
async def test_malformed_address_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match=r"host:port|numeric|at least one"):
        Tally(balance=target)


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf")])
async def test_infinite_time_limit_is_refused(tally: Tally, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        await tally.order.get_order(GetOrderRequest(), timeout_s=timeout_s)
    with pytest.raises(ValueError, match="finite"):
        await anext(tally.order.watch_order(WatchOrderRequest(), timeout_s=timeout_s))


async def test_request_of_another_method_is_refused(tally: Tally) -> None:
    request: Any = GetCouponRequest(coupon_id="c", user_id="ada")
    with pytest.raises(TypeError, match="takes GetOrderRequest, not GetCouponRequest"):
        await tally.order.get_order(request)
    with pytest.raises(TypeError, match="takes WatchOrderRequest, not GetCouponRequest"):
        await anext(tally.order.watch_order(request))


async def test_closed_client_refuses_calls(tally: Tally) -> None:
    await tally.close()
    with pytest.raises(ClientClosed):
        await tally.order.get_order(GetOrderRequest())
    with pytest.raises(ClientClosed):
        await anext(tally.order.watch_order(WatchOrderRequest()))
    await tally.close()


def test_client_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="loop"):
        Tally()


def test_channel_has_no_time_limits() -> None:
    assert not any("timeout" in entry for entry in policy.CHANNEL["methodConfig"])


def refused(code: str, *, retry_after_s: float | None) -> TallyError:
    return TallyError("No.", code=grpc.StatusCode[code], retry_after_s=retry_after_s)


@pytest.mark.parametrize("retries", range(12))
def test_wait_is_bounded_and_at_least_retry_after(retries: int) -> None:
    error = refused("RESOURCE_EXHAUSTED", retry_after_s=0.5)
    waits = [policy.wait_s(error, retries) for _ in range(50)]
    assert all(wait is not None and 0.5 < wait <= 3.5 for wait in waits)
    assert len(set(waits)) > 1


@pytest.mark.parametrize("breaks", [0, 3, 12, 5_000])
def test_wait_before_resuming_a_stream_grows_and_is_bounded(breaks: int) -> None:
    broken = NoAnswer("Reset.", code=grpc.StatusCode.INTERNAL)
    stopping = refused("UNAVAILABLE", retry_after_s=0.5)
    for _ in range(50):
        wait_s = policy.resume_s(broken, breaks)
        later_s = policy.resume_s(stopping, breaks)
        assert wait_s is not None
        assert later_s is not None
        assert min(1.0, 0.025 * 2.0 ** min(breaks, 10)) <= wait_s <= 3.0
        assert 0.5 < later_s <= 3.5
    assert policy.resume_s(refused("INTERNAL", retry_after_s=None), breaks) is None
    assert policy.resume_s(DeadlineExceeded(), breaks) is None


@pytest.mark.parametrize(
    ("code", "retry_after_s"),
    [("UNAVAILABLE", 1.0), ("DEADLINE_EXCEEDED", 1.0), ("ABORTED", None), ("INTERNAL", None)],
)
def test_other_errors_are_not_retried(code: str, retry_after_s: float | None) -> None:
    assert policy.wait_s(refused(code, retry_after_s=retry_after_s), 0) is None
