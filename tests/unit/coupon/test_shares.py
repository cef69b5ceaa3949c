"""How a quantity is split, and which share a replica draws from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_service.errors import CampaignNotOpen, CouponSoldOut
from coupon_service.model.share import Drawn, Share, preferred_share, split
from tests.unit.coupon.test_model import END, a_campaign, a_command


@given(st.integers(1, 10**12), st.integers(2, 64))
def test_shares_have_all_numbers_once_and_differ_by_one(quantity: int, shares: int) -> None:
    found = list(split(a_campaign(quantity=quantity, shares=shares)))
    assert [each.share for each in found] == list(range(shares))
    assert sum(each.quantity for each in found) == quantity
    assert {each.quantity for each in found} <= {quantity // shares, -(-quantity // shares)}
    following = [1, *(each.first_number + each.quantity for each in found)]
    assert [*(each.first_number for each in found), quantity + 1] == following


def test_a_campaign_without_shares_has_no_rows_for_them() -> None:
    assert not list(split(a_campaign(shares=1)))


def test_a_share_takes_its_numbers_in_order() -> None:
    share = Share("c", 1, 4, 2, 0)
    assert [share.take_number() for _ in range(2)] == [4, 5]
    assert share.left == 0


def test_numbers_come_from_the_shares_that_have_any_left() -> None:
    campaign = a_campaign(quantity=7, shares=3)
    drawn = Drawn(campaign, list(split(campaign))[:2], sold_out=False)
    assert drawn.left == 5
    assert [drawn.take_number("ann") for _ in range(6)] == [1, 2, 3, 4, 5, None]


@pytest.mark.parametrize("sold_out", [True, False])
def test_without_a_share_it_is_sold_out_only_if_all_were_empty(*, sold_out: bool) -> None:
    drawn = Drawn(a_campaign(shares=3), [], sold_out)
    if sold_out:
        with pytest.raises(CouponSoldOut):
            drawn.take_number("ann")
    else:
        assert drawn.take_number("ann") is None


def test_a_campaign_that_is_over_has_no_numbers_whatever_its_shares_have() -> None:
    campaign = a_campaign(quantity=7, shares=3)
    drawn = Drawn(replace(campaign, as_of=END), list(split(campaign)), sold_out=False)
    with pytest.raises(CampaignNotOpen):
        drawn.take_number("ann")


def test_replicas_prefer_the_same_share_each_time_and_spread_over_all() -> None:
    chosen: Counter[int] = Counter()
    for replica in range(40):
        for campaign in range(20):
            share = preferred_share(f"replica-{replica}", f"campaign-{campaign}", 8)
            assert share == preferred_share(f"replica-{replica}", f"campaign-{campaign}", 8)
            chosen[share] += 1
    # 100 for each share, if they were exactly even.
    assert set(chosen) == set(range(8))
    assert all(70 <= times <= 130 for times in chosen.values())


def test_the_content_of_a_request_has_its_shares_if_there_are_several() -> None:
    assert a_command().digest == a_command(shares=1).digest
    assert len({a_command(shares=shares).digest for shares in (1, 2, 64)}) == 3
