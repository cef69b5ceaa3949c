"""The rules of campaigns and coupons, on many inputs and in any order."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import TypeAdapter

from common.errors import CurrencyMismatch
from common.ids import new_id
from common.money import AMOUNT_MAX, Money
from coupon_service.errors import (
    CampaignNotOpen,
    CouponExpired,
    CouponNotUsable,
    CouponSoldOut,
    CouponWithoutEffect,
    OrderAmountTooSmall,
)
from coupon_service.model.campaign import Campaign, CampaignState, CreateCampaign, Terms
from coupon_service.model.coupon import (
    Coupon,
    CouponState,
    IssueCoupon,
    RedeemCoupon,
    Redemption,
    RestoreCoupon,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=1)
DAY_US = 86_400_000_000

amounts = st.integers(1, AMOUNT_MAX)
monies = amounts.map(lambda amount: Money("KRW", amount))
optional_monies = st.none() | monies
times = st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1))  # noqa: DTZ001
discounts = st.one_of(
    st.fixed_dictionaries({"fixed_discount": monies}),
    st.fixed_dictionaries({"percent_discount": st.integers(1, 100)}),
)


def a_command(**fields: Any) -> CreateCampaign:
    terms = Terms.of(fixed_discount=Money("KRW", 1_000))
    content: dict[str, Any] = {"quantity": 3, "terms": terms} | fields
    return CreateCampaign(
        name="Spring",
        start_time=START,
        end_time=END,
        coupon_lifetime_us=DAY_US,
        request_id="c1",
        **content,
    )


def a_campaign(**fields: Any) -> Campaign:
    return Campaign.create(a_command(**fields), new_id(), START)


def issued_coupon(campaign: Campaign) -> Coupon:
    return Coupon.issue(campaign, IssueCoupon(campaign.campaign_id, "ann", "i1"), new_id())


@pytest.mark.parametrize(
    ("terms", "amount", "discount"),
    [
        ({"fixed_discount": Money("KRW", 1_000)}, 5_000, 1_000),
        ({"fixed_discount": Money("KRW", 1_000)}, 999, 999),
        ({"fixed_discount": Money("KRW", 1_000), "max_discount": Money("KRW", 700)}, 5_000, 700),
        ({"percent_discount": 100}, 10**15, 10**15),
        ({"percent_discount": 50, "max_discount": Money("KRW", 300)}, 5_000, 300),
        ({"percent_discount": 50, "min_order_amount": Money("KRW", 5_000)}, 5_000, 2_500),
    ],
)
def test_discount_follows_the_terms(terms: dict[str, Any], amount: int, discount: int) -> None:
    assert Terms.of(**terms).discount(Money("KRW", amount)) == Money("KRW", discount)


@given(discounts, optional_monies, monies)
def test_discount_is_within_every_limit(
    discount: dict[str, Any], limit: Money | None, order_amount: Money
) -> None:
    off = Terms.of(**discount, max_discount=limit).discount(order_amount)
    assert off.currency_code == "KRW"
    assert 0 <= off.amount_minor <= order_amount.amount_minor
    if limit is not None:
        assert off.amount_minor <= limit.amount_minor


@given(st.integers(1, 100), amounts)
def test_percentage_is_rounded_down(percent: int, amount: int) -> None:
    off = Terms.of(percent_discount=percent).discount(Money("KRW", amount)).amount_minor
    assert off * 100 <= amount * percent < (off + 1) * 100


@given(discounts, monies, monies)
def test_order_below_the_minimum_is_refused(
    discount: dict[str, Any], minimum: Money, order_amount: Money
) -> None:
    terms = Terms.of(**discount, min_order_amount=minimum)
    if order_amount.amount_minor < minimum.amount_minor:
        with pytest.raises(OrderAmountTooSmall):
            terms.discount(order_amount)
    else:
        terms.discount(order_amount)


def test_amounts_of_terms_have_one_currency() -> None:
    usd, krw = Money("USD", 1), Money("KRW", 1)
    for fields in (
        {"fixed_discount": usd, "max_discount": krw},
        {"fixed_discount": usd, "min_order_amount": krw},
        {"percent_discount": 1, "max_discount": usd, "min_order_amount": krw},
    ):
        with pytest.raises(CurrencyMismatch):
            Terms.of(**fields)
    assert Terms.of(percent_discount=50).discount(Money("USD", 3)) == Money("USD", 1)
    with pytest.raises(CurrencyMismatch):
        Terms.of(percent_discount=50, max_discount=krw).discount(Money("USD", 3))


@pytest.mark.parametrize(
    ("as_of", "issued", "state"),
    [
        (START - timedelta(microseconds=1), 0, CampaignState.SCHEDULED),
        (START, 0, CampaignState.OPEN),
        (START, 3, CampaignState.SOLD_OUT),
        (END - timedelta(microseconds=1), 2, CampaignState.OPEN),
        (END, 2, CampaignState.ENDED),
        (END, 3, CampaignState.ENDED),
    ],
)
def test_state_decides_whether_a_coupon_is_issued(
    as_of: datetime, issued: int, state: CampaignState
) -> None:
    campaign = replace(a_campaign(), as_of=as_of, issued=issued)
    assert campaign.state is state
    if state is CampaignState.OPEN:
        assert issued_coupon(campaign).issue_number == issued + 1
    else:
        expected = CouponSoldOut if state is CampaignState.SOLD_OUT else CampaignNotOpen
        with pytest.raises(expected):
            issued_coupon(campaign)
        assert campaign.issued == issued


@given(st.integers(1, 20), st.integers(0, 40))
def test_numbers_go_from_1_to_the_quantity(quantity: int, asked: int) -> None:
    campaign = a_campaign(quantity=quantity)
    numbers = []
    for _ in range(asked):
        try:
            numbers.append(issued_coupon(campaign).issue_number)
        except CouponSoldOut:
            assert len(numbers) == quantity
    assert numbers == list(range(1, min(quantity, asked) + 1))
    assert campaign.issued == len(numbers)


def a_coupon(**fields: Any) -> Coupon:
    return replace(issued_coupon(a_campaign()), **fields)


@given(times, times)
def test_stored_body_is_read_back_equal(one: datetime, two: datetime) -> None:
    coupon = a_coupon(issue_time=one, expire_time=two, as_of=two, redeem_time=one)
    campaign = replace(a_campaign(), start_time=one, end_time=two)
    for kind, value in ((Coupon, coupon), (Campaign, campaign)):
        body: TypeAdapter[Any] = TypeAdapter(kind)
        assert body.validate_json(body.dump_json(value)) == value


class CouponMachine(RuleBasedStateMachine):
    """One coupon redeemed and restored in any order while time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.coupon = a_coupon()
        self.redemptions: dict[str, Redemption] = {}
        self.terms = Terms.of(percent_discount=10)

    @rule(minutes=st.integers(0, 600))
    def time_passes(self, minutes: int) -> None:
        later = self.coupon.as_of + timedelta(minutes=minutes)
        self.coupon = replace(self.coupon, as_of=later)

    @rule(amount=st.integers(1, 1_000))
    def redeem(self, amount: int) -> None:
        request_id = f"r{len(self.redemptions)}"
        command = RedeemCoupon(
            self.coupon.coupon_id, "ann", f"o-{request_id}", Money("KRW", amount), request_id
        )
        try:
            self.coupon, redemption = self.coupon.redeem(command, self.terms)
        except CouponNotUsable:
            assert self.live()
        except CouponExpired:
            assert not self.live()
            assert self.coupon.as_of >= self.coupon.expire_time
        except CouponWithoutEffect:
            assert not self.live()
            assert amount < 10
        else:
            assert not self.live()
            assert redemption.discount.amount_minor > 0
            assert redemption.discount == Money("KRW", amount // 10)
            self.redemptions[request_id] = redemption

    @precondition(lambda self: self.live())
    @rule()
    def restore(self) -> None:
        (redemption,) = self.live()
        command = RestoreCoupon(self.coupon.coupon_id, "ann", redemption.request_id, "s")
        self.coupon, restored = self.coupon.restore(command, redemption)
        assert restored.restore_time == self.coupon.as_of
        self.redemptions[redemption.request_id] = restored

    def live(self) -> list[Redemption]:
        return [redemption for redemption in self.redemptions.values() if redemption.live]

    @invariant()
    def the_coupon_shows_its_live_redemption(self) -> None:
        live = self.live()
        assert len(live) <= 1
        shown = (self.coupon.redeem_request_id, self.coupon.order_id, self.coupon.redeem_time)
        if live:
            (only,) = live
            assert shown == (only.request_id, only.order_id, only.redeem_time)
            assert self.coupon.state is CouponState.REDEEMED
        else:
            assert shown == (None, None, None)
            expired = self.coupon.as_of >= self.coupon.expire_time
            assert self.coupon.state is (CouponState.EXPIRED if expired else CouponState.ISSUED)


TestCouponMachine = CouponMachine.TestCase
