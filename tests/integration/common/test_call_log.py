"""Which calls are logged, and what a line says."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from structlog.testing import capture_logs

from common.errors import DatabaseUnavailable, Overloaded
from common.rpc import call_log
from common.rpc.call_log import USER_IDS_MAX, CallLog
from tally.balance.v1.balance_pb2 import DeductBalanceRequest
from tally.coupon.v1.coupon_pb2 import BatchIssueCouponsItem, BatchIssueCouponsRequest
from tally.order.v1.order_pb2 import CreateOrderRequest, OrderLine
from tests.integration.common.echo import SAY, Raising, SoldOut, connected
from tests.support.balances import batch, charge

OK = ("info", "OK", "")
SOLD_OUT = ("info", "RESOURCE_EXHAUSTED", "SOLD_OUT")
AWAY = ("warning", "UNAVAILABLE", "DATABASE_UNAVAILABLE")
FULL = ("warning", "RESOURCE_EXHAUSTED", "OVERLOADED")
DEFECT = ("warning", "INTERNAL", "INTERNAL")


async def lines_of(wanted: str, *errors: Exception) -> list[dict[str, Any]]:
    """The lines of as many calls as there are errors, and of one that succeeds."""
    with capture_logs() as logged:
        async with connected(Raising(*errors), log_calls=wanted) as client:
            for _ in range(len(errors) + 1):
                with suppress(grpc.aio.AioRpcError):
                    await client.say()
    return [dict(line) for line in logged if line["event"] == "call"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("all", [SOLD_OUT, AWAY, FULL, DEFECT, OK]),
        ("errors", [AWAY, FULL, DEFECT]),
        ("off", []),
    ],
)
async def test_a_setting_chooses_the_calls_that_are_logged(
    wanted: str, expected: list[tuple[str, str, str]]
) -> None:
    errors = (SoldOut(), DatabaseUnavailable(), Overloaded(), ValueError("secret"))
    lines = await lines_of(wanted, *errors)
    assert [(one["log_level"], one["code"], one["reason"]) for one in lines] == expected
    assert {one["method"] for one in lines} <= {SAY}
    assert all(one["ms"] >= 0 for one in lines)
    assert "secret" not in str(lines)


async def test_calls_beyond_a_second_of_lines_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 7.0
    monkeypatch.setattr(call_log, "ERRORS_PER_S_MAX", 2)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = CallLog("errors")
    with capture_logs() as logged:
        for _ in range(5):
            log.write(SAY, "UNAVAILABLE", "DATABASE_UNAVAILABLE", 0.0, None)
        now = 8.0
        log.write(SAY, "UNAVAILABLE", "DATABASE_UNAVAILABLE", 0.0, None)
    assert [line["event"] for line in logged] == ["call", "call", "calls_not_logged", "call"]
    assert logged[2]["calls"] == 3


def test_a_line_has_the_request_id_of_its_call() -> None:
    with capture_logs() as logged:
        CallLog("all").write(SAY, "OK", "", 0.0, DeductBalanceRequest(request_id="pay-1"))
    assert logged[0]["request_id"] == "pay-1"


@pytest.mark.parametrize(
    ("request_", "logged_of_items"),
    [
        (
            batch(*(charge(f"u{number}", 1, "r") for number in (1, 2, 1)), charge("a\nb", 1, "r")),
            {"items": 4, "user_ids": ["u1", "u2"]},
        ),
        (
            BatchIssueCouponsRequest(items=[BatchIssueCouponsItem(user_id="u1", request_id="r")]),
            {"items": 1, "user_ids": ["u1"]},
        ),
        (
            batch(*(charge(f"u{number}", 1, "r") for number in range(1_000))),
            {"items": 1_000, "user_ids": [f"u{number}" for number in range(USER_IDS_MAX)]},
        ),
        (CreateOrderRequest(items=[OrderLine(product_id="p", quantity=1)]), {"items": 1}),
    ],
    ids=["of requests", "of users", "many", "of an order"],
)
def test_a_line_has_the_users_of_the_items_of_its_call(
    request_: Message, logged_of_items: dict[str, Any]
) -> None:
    with capture_logs() as logged:
        CallLog("all").write(SAY, "OK", "", 0.0, request_)
    written = {name: logged[0][name] for name in ("items", "user_ids") if name in logged[0]}
    assert written == logged_of_items


async def test_health_checks_are_not_logged() -> None:
    """A probe each second would be most of the log."""
    with capture_logs() as logged:
        async with connected(log_calls="all") as client:
            await client.check()
            watch = client.watch()
            await watch.next()
    assert [line for line in logged if line["event"] == "call"] == []
