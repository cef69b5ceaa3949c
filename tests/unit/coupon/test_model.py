"""The rules of campaigns and coupons, tried on many inputs and in any order."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import TypeAdapter

from common.errors import CurrencyMismatch, InvalidField, InvalidPageToken
from common.ids import new_id
from common.money import AMOUNT_MAX, Money
from common.paging import Page
from coupon_service.errors import (
    CampaignNotOpen,
    CouponExpired,
    CouponNotUsable,
    CouponSoldOut,
    OrderAmountTooSmall,
)
from coupon_service.model.campaigns import Campaign, CampaignState, CreateCampaign, IssueCoupon
from coupon_service.model.coupons import (
    Coupon,
    CouponState,
    RedeemCoupon,
    Redemption,
    RestoreCoupon,
)
from coupon_service.model.terms import Terms
from coupon_service.use_cases.pages import KEY, cut, place_before

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


def terms_of(discount: dict[str, Any], **limits: Any) -> Terms:
    return Terms.of(**discount, **limits)


def a_campaign(**fields: Any) -> Campaign:
    terms = Terms.of(fixed_discount=Money("KRW", 1_000))
    content: dict[str, Any] = {"quantity": 3, "terms": terms} | fields
    command = CreateCampaign(
        name="Spring",
        start_time=START,
        end_time=END,
        coupon_lifetime_us=DAY_US,
        request_id="c1",
        **content,
    )
    return Campaign.create(command, new_id(), START)


@given(discounts, optional_monies, monies)
def test_a_discount_is_within_every_limit(
    discount: dict[str, Any], most: Money | None, order_amount: Money
) -> None:
    off = terms_of(discount, max_discount=most).discount(order_amount)
    assert off.currency_code == "KRW"
    assert 0 <= off.amount_minor <= order_amount.amount_minor
    if most is not None:
        assert off.amount_minor <= most.amount_minor


@given(st.integers(1, 100), amounts)
def test_a_percentage_is_rounded_down(percent: int, amount: int) -> None:
    off = Terms.of(percent_discount=percent).discount(Money("KRW", amount)).amount_minor
    assert off * 100 <= amount * percent < (off + 1) * 100


@given(discounts, monies, monies)
def test_the_smallest_order_is_one_that_costs_just_as_much(
    discount: dict[str, Any], least: Money, order_amount: Money
) -> None:
    terms = terms_of(discount, min_order_amount=least)
    if order_amount.amount_minor < least.amount_minor:
        with pytest.raises(OrderAmountTooSmall):
            terms.discount(order_amount)
    else:
        terms.discount(order_amount)


def test_terms_know_one_currency_or_none() -> None:
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


def test_a_campaign_ends_after_it_began() -> None:
    with pytest.raises(InvalidField) as refused:
        CreateCampaign("x", Terms.of(percent_discount=1), 1, START, START, 1, "c1")
    assert refused.value.fields[0].field == "end_time"


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
def test_where_a_campaign_stands(as_of: datetime, issued: int, state: CampaignState) -> None:
    campaign = replace(a_campaign(), as_of=as_of, issued=issued)
    assert campaign.state is state
    command = IssueCoupon(campaign.campaign_id, "ann", "i1")
    if state is CampaignState.OPEN:
        assert campaign.issue(command, new_id()).issue_number == issued + 1
    else:
        expected = CouponSoldOut if state is CampaignState.SOLD_OUT else CampaignNotOpen
        with pytest.raises(expected):
            campaign.issue(command, new_id())
        assert campaign.issued == issued


@given(st.integers(1, 20), st.integers(0, 40))
def test_as_many_are_issued_as_there_are_in_order(quantity: int, asked: int) -> None:
    campaign = a_campaign(quantity=quantity)
    numbers = []
    for user in range(asked):
        try:
            command = IssueCoupon(campaign.campaign_id, f"u{user}", "i1")
            numbers.append(campaign.issue(command, new_id()).issue_number)
        except CouponSoldOut:
            assert len(numbers) == quantity
    assert numbers == list(range(1, min(quantity, asked) + 1))
    assert campaign.issued == len(numbers)


def a_coupon(**fields: Any) -> Coupon:
    campaign = a_campaign()
    coupon = campaign.issue(IssueCoupon(campaign.campaign_id, "ann", "i1"), new_id())
    return replace(coupon, **fields)


@given(times, times)
def test_a_stored_body_is_the_same_again(one: datetime, two: datetime) -> None:
    coupon = a_coupon(issue_time=one, expire_time=two, as_of=two, redeem_time=one)
    campaign = replace(a_campaign(), start_time=one, end_time=two)
    for kind, value in ((Coupon, coupon), (Campaign, campaign)):
        body: TypeAdapter[Any] = TypeAdapter(kind)
        assert body.validate_json(body.dump_json(value)) == value


@given(st.lists(times, min_size=1, max_size=9), st.integers(1, 9))
def test_a_page_goes_on_where_the_last_one_ended(found: list[datetime], size: int) -> None:
    rows = [(time, new_id()) for time in found]
    page = Page.of(size, "", filters=["list"], key=KEY)
    shown, token = cut(page, rows, lambda row: row)
    assert shown == rows[:size]
    if len(rows) <= size:
        assert token == ""
    else:
        again = Page.of(size, token, filters=["list"], key=KEY)
        assert place_before(again) == rows[size - 1]


@pytest.mark.parametrize("key", [[2**62, new_id()], [-(2**62), new_id()], [0, "x"], [0, ""]])
def test_a_place_that_no_row_has_is_refused(key: list[Any]) -> None:
    token = Page(1, None, ("list",)).token(key)
    with pytest.raises(InvalidPageToken):
        place_before(Page.of(1, token, filters=["list"], key=KEY))


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
        else:
            assert not self.live()
            assert redemption.discount.amount_minor == amount // 10
            self.redemptions[request_id] = redemption

    @precondition(lambda self: self.live())
    @rule()
    def restore(self) -> None:
        (redemption,) = self.live()
        command = RestoreCoupon(self.coupon.coupon_id, "ann", redemption.request_id, "s")
        self.coupon, undone = self.coupon.restore(command, redemption)
        assert undone.restore_time == self.coupon.as_of
        self.redemptions[redemption.request_id] = undone

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
