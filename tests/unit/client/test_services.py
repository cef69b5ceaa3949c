"""The client has every method of the contract, with its types and limits."""

from __future__ import annotations

import re
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from tally.coupon.v1.coupon_pb2 import GetCouponRequest
from tally_client import NotConnected, Tally, TallyError, policy
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


@pytest.mark.parametrize(
    ("code", "retry_after_s"),
    [("UNAVAILABLE", 1.0), ("DEADLINE_EXCEEDED", 1.0), ("ABORTED", None), ("INTERNAL", None)],
)
def test_nothing_else_is_repeated_here(code: str, retry_after_s: float | None) -> None:
    assert policy.wait_s(_refused(code, retry_after_s=retry_after_s), 0) is None


def _refused(code: str, *, retry_after_s: float | None) -> TallyError:
    return TallyError("No.", code=grpc.StatusCode[code], retry_after_s=retry_after_s)
