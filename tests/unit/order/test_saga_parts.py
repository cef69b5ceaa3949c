"""Who pays what, for every order, discount and wish."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from common.errors import Refusal
from order_service.model.saga import Facts, PayAsked
from tests.support.saga_world import pay_asked

AMOUNTS = st.integers(0, 10**15)
ORDER_ID = "order"

attempts = st.builds(
    pay_asked,
    subtotal_minor=AMOUNTS,
    coupon_id=st.none() | st.just("coupon-1"),
    balance_minor=st.none() | AMOUNTS,
    payment_key=st.none() | st.just("key-1"),
)


def refusal_of(asked: PayAsked, discount_minor: int) -> str | None:
    try:
        asked.parts(ORDER_ID, Facts(discount_minor=discount_minor))
    except Refusal as refusal:
        return refusal.reason
    return None


def checked(asked: PayAsked) -> str | None:
    try:
        asked.check(ORDER_ID)
    except Refusal as refusal:
        return refusal.reason
    return None


@given(attempts, st.data())
def test_the_parts_are_what_is_due_and_nobody_pays_less_than_nothing(
    asked: PayAsked, data: st.DataObject
) -> None:
    discount = data.draw(st.integers(0, asked.subtotal_minor))
    assume(refusal_of(asked, discount) is None)
    parts = asked.parts(ORDER_ID, Facts(discount_minor=discount))
    assert parts.discount_minor + parts.balance_minor + parts.gateway_minor == asked.subtotal_minor
    assert min(parts.discount_minor, parts.balance_minor, parts.gateway_minor) >= 0
    if parts.gateway_minor:
        assert asked.payment_key is not None
    if asked.balance_minor is not None:
        assert parts.balance_minor == asked.balance_minor
    elif asked.payment_key is not None:
        assert parts.balance_minor == 0


@given(attempts, st.data())
def test_what_is_refused_at_once_would_be_refused_whatever_the_discount(
    asked: PayAsked, data: st.DataObject
) -> None:
    discount = data.draw(st.integers(0, asked.subtotal_minor)) if asked.uses_coupon else 0
    at_once = checked(asked)
    if at_once is not None:
        assert refusal_of(asked, discount) == at_once
    elif not asked.uses_coupon:
        assert refusal_of(asked, 0) is None


@given(attempts)
def test_a_key_is_ignored_when_nothing_is_left(asked: PayAsked) -> None:
    paid = replace(asked, balance_minor=asked.subtotal_minor, coupon_id=None)
    with_key = replace(paid, payment_key="key-1").parts(ORDER_ID, Facts())
    without = replace(paid, payment_key=None).parts(ORDER_ID, Facts())
    assert with_key == without
    assert with_key.gateway_minor == 0
