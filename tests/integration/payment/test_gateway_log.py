"""The log line of a gateway call that did not end well."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from tests.support.payments import confirm, key_of, only_payment


@pytest.mark.parametrize(
    ("card", "level", "outcome", "status"),
    [
        pytest.param(
            "decline_",
            "info",
            "Declined(code='REJECT_CARD_PAYMENT')",
            403,
            id="declined",
        ),
        pytest.param("error_", "warning", "Unknown(reason='500", 500, id="error"),
    ],
)
async def test_a_call_that_did_not_end_well_is_logged(
    payment: Any, card: str, level: str, outcome: str, status: int
) -> None:
    key = key_of(card)
    with capture_logs() as logged, suppress(grpc.aio.AioRpcError):
        await payment.ConfirmPayment(confirm(key))
    line = next(line for line in logged if line["event"] == "gateway_call")
    assert (line["log_level"], line["asked"], line["http_status"]) == (
        level,
        "confirm",
        status,
    )
    assert line["outcome"].startswith(outcome)
    assert (line["payment_key"], line["payment_id"]) == (
        key,
        (await only_payment(payment)).payment_id,
    )
    assert line["ms"] >= 0


async def test_a_call_that_ended_well_is_not_logged(payment: Any) -> None:
    with capture_logs() as logged:
        await payment.ConfirmPayment(confirm(key_of()))
    assert [line for line in logged if line["event"].startswith("gateway")] == []
