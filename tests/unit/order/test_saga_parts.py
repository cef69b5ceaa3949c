"""What each source pays, for every order, discount and request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.errors import Refusal
from order_service.model.saga import SagaState, StepState
from order_service.model.saga_input import Parts, PayInput, StepResults
from order_service.saga.plan import PAY_ORDER
from tests.support.sagas import DISCOUNT, SagaRun, pay_input, saga_of

AMOUNTS = st.integers(0, 10**15)
ORDER_ID = "order"
STEPS = [step.name for step in PAY_ORDER.steps]

requests = st.builds(
    pay_input,
    subtotal_minor=AMOUNTS,
    coupon_id=st.none() | st.just("coupon-1"),
    balance_minor=st.none() | AMOUNTS,
    payment_key=st.none() | st.just("key-1"),
)


def parts_of(asked: PayInput, discount_minor: int = 0) -> Parts | str:
    """The parts, or the reason of the refusal."""
    try:
        return asked.parts(ORDER_ID, StepResults(discount_minor=discount_minor))
    except Refusal as refusal:
        return refusal.reason


def early_refusal(asked: PayInput) -> str | None:
    try:
        asked.check(ORDER_ID)
    except Refusal as refusal:
        return refusal.reason
    return None


@given(requests, st.data())
def test_the_parts_add_up_to_what_is_due_and_none_is_negative(
    asked: PayInput, data: st.DataObject
) -> None:
    discount_minor = data.draw(st.integers(0, asked.subtotal_minor))
    parts = parts_of(asked, discount_minor)
    assume(isinstance(parts, Parts))
    assert isinstance(parts, Parts)
    amounts = (parts.discount_minor, parts.balance_minor, parts.gateway_minor)
    assert sum(amounts) == asked.subtotal_minor
    assert min(amounts) >= 0
    if parts.gateway_minor:
        assert asked.payment_key is not None
    if asked.balance_minor is not None:
        assert parts.balance_minor == asked.balance_minor
    elif asked.payment_key is not None:
        assert parts.balance_minor == 0


@given(requests, st.data())
def test_an_early_refusal_is_right_whatever_the_discount(
    asked: PayInput, data: st.DataObject
) -> None:
    discount_minor = data.draw(st.integers(0, asked.subtotal_minor)) if asked.uses_coupon else 0
    early = early_refusal(asked)
    if early is not None:
        assert parts_of(asked, discount_minor) == early
    elif not asked.uses_coupon:
        assert isinstance(parts_of(asked), Parts)


@given(requests)
def test_a_payment_key_is_ignored_if_nothing_is_left_to_pay(asked: PayInput) -> None:
    paid = replace(asked, balance_minor=asked.subtotal_minor, coupon_id=None)
    parts = parts_of(replace(paid, payment_key="key-1"))
    assert parts == parts_of(replace(paid, payment_key=None))
    assert isinstance(parts, Parts)
    assert parts.gateway_minor == 0


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, STEPS),
        ({"coupon_id": None}, STEPS[1:]),
        ({"balance_minor": None}, ["redeem_coupon", "confirm_payment"]),
        ({"balance_minor": 0}, ["redeem_coupon", "confirm_payment"]),
        ({"balance_minor": 1_000 - DISCOUNT}, ["redeem_coupon", "deduct_balance"]),
        ({"balance_minor": None, "payment_key": None}, ["redeem_coupon", "deduct_balance"]),
        ({"coupon_id": None, "balance_minor": None, "payment_key": None}, ["deduct_balance"]),
        ({"coupon_id": None, "balance_minor": None}, ["confirm_payment"]),
        ({"subtotal_minor": DISCOUNT, "balance_minor": None}, ["redeem_coupon"]),
        ({"subtotal_minor": 0, "balance_minor": None}, []),
    ],
)
async def test_steps_with_nothing_to_do_are_skipped(
    changes: dict[str, Any], done: list[str]
) -> None:
    run = await SagaRun(saga_of(PAY_ORDER, pay_input(**changes))).run()
    assert run.row.state is SagaState.COMPLETED
    assert run.services.calls == done
    skipped = {step.name for step in run.row.steps if step.state is StepState.SKIPPED}
    assert skipped == set(STEPS) - set(done)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"balance_minor": 1_000}, "AMOUNT_EXCEEDS_DUE"),
        ({"balance_minor": 300, "payment_key": None}, "PAYMENT_KEY_REQUIRED"),
    ],
)
async def test_what_the_discount_makes_impossible_gives_the_coupon_back(
    changes: dict[str, Any], reason: str
) -> None:
    asked = pay_input(**changes)
    asked.check("order")
    run = await SagaRun(saga_of(PAY_ORDER, asked)).run()
    assert run.row.state is SagaState.COMPENSATED
    assert run.services.effects == []
    assert run.services.calls == ["redeem_coupon", "redeem_coupon:undo"]
    assert run.failure.reason == reason
