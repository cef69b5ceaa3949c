"""The client has every method of the contract, with its types and limits."""

from __future__ import annotations

import re
from typing import Any

import grpc
import pytest
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
from tests.unit.test_protos import METHODS, every_method


def attribute(method: MethodDescriptor) -> tuple[str, str]:
    service = method.containing_service.name.removesuffix("Service").lower()
    return service, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()


@every_method
async def test_every_method_can_be_called(method: MethodDescriptor) -> None:
    service, name = attribute(method)
    async with Tally() as tally:
        found: Any = getattr(getattr(tally, service), name)
    assert found.path == f"/{method.containing_service.full_name}/{method.name}"
    kind = (
        Watch if method.server_streaming else Listing if method.name.startswith("List") else Unary
    )
    assert type(found) is kind
    assert (found.timeout_s is None) is method.server_streaming


async def test_there_are_no_others() -> None:
    async with Tally() as tally:
        found = [
            (service, name)
            for service, methods in vars(tally).items()
            if not service.startswith("_")
            for name in vars(methods)
            if not name.startswith("_")
        ]
    assert sorted(found) == sorted(attribute(method) for method in METHODS)


async def test_a_service_without_an_address_says_so() -> None:
    async with Tally(order="127.0.0.1:1") as tally:
        with pytest.raises(NotConnected, match="coupon"):
            await tally.coupon.get_coupon(GetCouponRequest(coupon_id="c", user_id="ada"))


@pytest.mark.parametrize("target", ["", "no-port", ["a:1", "b:2"], []])
async def test_an_address_that_is_none_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match=r"host:port|numeric|at least one"):
        Tally(balance=target)


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf")])
async def test_a_time_limit_that_is_none_is_refused(timeout_s: float) -> None:
    async with Tally(coupon="127.0.0.1:1", order="127.0.0.1:1") as tally:
        with pytest.raises(ValueError, match="finite"):
            await tally.coupon.get_coupon(GetCouponRequest(), timeout_s=timeout_s)
        with pytest.raises(ValueError, match="finite"):
            await anext(tally.order.watch_order(WatchOrderRequest(), timeout_s=timeout_s))


async def test_a_request_of_another_method_is_refused() -> None:
    request: Any = GetCouponRequest(coupon_id="c", user_id="ada")
    async with Tally(order="127.0.0.1:1") as tally:
        with pytest.raises(TypeError, match="takes GetOrderRequest, not GetCouponRequest"):
            await tally.order.get_order(request)
        with pytest.raises(TypeError, match="takes WatchOrderRequest, not GetCouponRequest"):
            await anext(tally.order.watch_order(request))


async def test_a_closed_client_says_so() -> None:
    async with Tally(order="127.0.0.1:1") as tally:
        pass
    with pytest.raises(ClientClosed):
        await tally.order.get_order(GetOrderRequest())
    with pytest.raises(ClientClosed):
        await anext(tally.order.watch_order(WatchOrderRequest()))
    await tally.close()


def test_a_client_is_made_in_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="loop"):
        Tally()


def test_the_channel_sets_no_limits_of_its_own() -> None:
    assert not any("timeout" in entry for entry in policy.CHANNEL["methodConfig"])
    assert len(policy.TIMEOUTS_S) == len(METHODS) - 1


@pytest.mark.parametrize("repetitions", range(12))
def test_a_wait_is_at_least_what_was_asked_for_and_bounded(repetitions: int) -> None:
    error = _refused("RESOURCE_EXHAUSTED", retry_after_s=0.5)
    waits = [policy.wait_s(error, repetitions) for _ in range(50)]
    assert all(wait is not None and 0.5 < wait <= 3.5 for wait in waits)
    assert len(set(waits)) > 1


@pytest.mark.parametrize("breaks", [0, 3, 12, 5_000])
def test_a_stream_that_breaks_again_and_again_is_taken_up_more_and_more_slowly(breaks: int) -> None:
    broken = NoAnswer("Reset.", code=grpc.StatusCode.INTERNAL)
    stopping = _refused("UNAVAILABLE", retry_after_s=0.5)
    for _ in range(50):
        wait_s = policy.resume_s(broken, breaks)
        later_s = policy.resume_s(stopping, breaks)
        assert wait_s is not None
        assert later_s is not None
        assert min(1.0, 0.025 * 2.0 ** min(breaks, 10)) <= wait_s <= 3.0
        assert 0.5 < later_s <= 3.5
    assert policy.resume_s(_refused("INTERNAL", retry_after_s=None), breaks) is None
    assert policy.resume_s(DeadlineExceeded(), breaks) is None


@pytest.mark.parametrize(
    ("code", "retry_after_s"),
    [("UNAVAILABLE", 1.0), ("DEADLINE_EXCEEDED", 1.0), ("ABORTED", None), ("INTERNAL", None)],
)
def test_nothing_else_is_repeated_here(code: str, retry_after_s: float | None) -> None:
    assert policy.wait_s(_refused(code, retry_after_s=retry_after_s), 0) is None


def _refused(code: str, *, retry_after_s: float | None) -> TallyError:
    return TallyError("No.", code=grpc.StatusCode[code], retry_after_s=retry_after_s)
