"""Items of bulk calls: each refusal is the one of the single call, and concerns its item alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from tally.coupon.v1.coupon_pb2 import BatchIssueCouponsItem, BatchIssueCouponsRequest
from tests.integration.contract.invalid_values import invalid_requests
from tests.integration.contract.services import Services, method_of
from tests.integration.contract.statuses import WHOLE_REQUEST
from tests.integration.contract.valid_requests import USER, fresh
from tests.support.balances import batch, charge, deduct, refund
from tests.support.contract import METHODS_BY_NAME
from tests.support.coupons import issue

pytestmark = pytest.mark.asyncio(loop_scope="module")


def bulk_of(requests: list[Any]) -> Any:
    """The bulk call that stands for the requests of single calls."""
    if method_of(requests[0]).name != "IssueCoupon":
        return batch(*requests)
    items = [
        BatchIssueCouponsItem(user_id=request.user_id, request_id=request.request_id)
        for request in requests
    ]
    return BatchIssueCouponsRequest(campaign_id=requests[0].campaign_id, items=items)


async def refusal(services: Services, request: Message) -> Status | None:
    """The status of the single call; None if it succeeds."""
    try:
        await services.call(request)
    except grpc.aio.AioRpcError as error:
        raw = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
        return Status.FromString(raw)
    return None


def broken(services: Services, name: str) -> Iterator[Any]:
    """The method's valid request with every invalid value of every field that an item has."""
    for field in METHODS_BY_NAME[name].input_type.fields:
        if field.name != "campaign_id":
            for case in invalid_requests(services.valid(name), field):
                if case.expected != WHOLE_REQUEST and len(str(case.request)) < 1_000:
                    yield case.request


@pytest.mark.parametrize(
    "name", ["ChargeBalance", "DeductBalance", "RefundDeduction", "IssueCoupon"]
)
async def test_an_invalid_item_has_the_refusal_of_the_single_call(
    services: Services, name: str
) -> None:
    requests = list(broken(services, name))
    assert len(requests) > 20
    async with services.unchanged():
        single = [await refusal(services, request) for request in requests]
        response = await services.call(bulk_of(requests))
    assert [result.error for result in response.results] == single


def refused_requests(services: Services) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Requests that the data does not allow."""
    yield "ACCOUNT_NOT_FOUND", lambda: deduct("nobody", 1, fresh())
    yield "INSUFFICIENT_FUNDS", lambda: deduct(USER, 10**15, fresh())
    yield "INVALID_FIELD", lambda: charge("nobody", 1, fresh(), currency="ABC")
    yield "REQUEST_ID_REUSED", lambda: charge(USER, 2, "used")
    yield "DEDUCTION_CANCELLED", lambda: deduct(USER, 1, "refunded")
    yield "COUPON_ALREADY_ISSUED", lambda: issue(services.seed.campaigns[0], USER, fresh())


async def test_a_refused_item_has_the_refusal_of_the_single_call(services: Services) -> None:
    await services.call(charge(USER, 1, "used"))
    await services.call(refund(USER, "refunded", fresh()))
    found = {}
    for reason, request in refused_requests(services):
        single = await refusal(services, request())
        [result] = (await services.call(bulk_of([request()]))).results
        assert single is not None
        if result.error != single or reason not in str(single):
            found[reason] = (result.error, single)
    assert found == {}


async def test_an_item_without_a_write_is_invalid(services: Services) -> None:
    request = services.valid("BatchWrite")
    request.items[1].Clear()
    first, second, third = (await services.call(request)).results
    assert (first.error.code, third.error.code) == (0, 0)
    assert "INVALID_FIELD" in str(second.error)
    assert "write" in str(second.error)
