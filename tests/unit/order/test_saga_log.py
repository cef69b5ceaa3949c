"""The log lines of steps that fail, and of sagas that need a person."""

from __future__ import annotations

from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any

import pytest

from order_service.saga.plan import PAY_ORDER
from tests.support.sagas import (
    LIMITS,
    LOST,
    NOW,
    REFUSED,
    SAGA_ID,
    UNREACHED,
    Errors,
    SagaRun,
    saga_of,
)

Line = tuple[str, str, str, int, bool]
"""Level, step, direction, attempt, and whether it is tried again."""


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        pytest.param(
            {"deduct_balance": [REFUSED]},
            [("info", "deduct_balance", "do", 1, False)],
            id="refused",
        ),
        pytest.param(
            {"confirm_payment": [LOST]},
            [("warning", "confirm_payment", "do", 1, True)],
            id="outcome unknown",
        ),
        pytest.param(
            {"confirm_payment": [REFUSED], "redeem_coupon:undo": [UNREACHED]},
            [
                ("info", "confirm_payment", "do", 1, False),
                ("warning", "redeem_coupon", "undo", 1, True),
            ],
            id="undo not reached",
        ),
    ],
)
async def test_each_failed_call_has_a_line(
    errors: Errors, expected: list[Line], logged: list[MutableMapping[str, Any]]
) -> None:
    run = SagaRun(saga_of(PAY_ORDER), errors)
    await run.run()
    lines = [line for line in logged if line["event"] == "saga_step_failed"]
    assert [
        (
            line["log_level"],
            line["step"],
            line["direction"],
            line["attempt"],
            line["next_attempt"] is not None,
        )
        for line in lines
    ] == expected
    for line in lines:
        assert (line["saga_id"], line["order_id"]) == (SAGA_ID, run.saga.order_id)
        assert line["user_id"] == run.saga.user_id
        assert line["reason"]


async def test_the_line_for_a_person_has_the_step_and_what_is_undone(
    logged: list[MutableMapping[str, Any]],
) -> None:
    long_ago = NOW - timedelta(seconds=LIMITS.attention_s)
    run = SagaRun(
        saga_of(PAY_ORDER, create_time=long_ago),
        {"confirm_payment": [REFUSED], "redeem_coupon:undo": [UNREACHED]},
    )
    await run.run()
    (line,) = [line for line in logged if line["event"] == "saga_needs_attention"]
    assert (line["steps"], line["undone"]) == (
        ["redeem_coupon"],
        ["deduct_balance", "confirm_payment"],
    )
    assert (line["user_id"], line["kind"]) == (run.saga.user_id, "PAY_ORDER")
