"""Coupons redeemed and restored, as a client sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.coupons import (
    MICROSECOND,
    campaign,
    get_coupon,
    issue,
    redeem,
    restore,
    won,
)
from tests.support.refusals import refused

NOBODYS = "01890000-0000-7000-8000-000000000000"


async def issued(
    coupon: Any, user_id: str = "ann", request_id: str = "campaign", **fields: Any
) -> pb.Coupon:
    """The coupon of a new campaign's first user."""
    made = await coupon.CreateCampaign(campaign(request_id, **fields))
    asked = issue(made.campaign.campaign_id, user_id, request_id)
    response = await coupon.IssueCoupon(asked)
    got: pb.Coupon = response.coupon
    return got


async def now(coupon: Any, held: pb.Coupon) -> pb.Coupon:
    response = await coupon.GetCoupon(get_coupon(held.coupon_id, held.user_id))
    got: pb.Coupon = response.coupon
    return got


async def test_a_coupon_is_redeemed_by_one_order(coupon: Any) -> None:
    held = await issued(coupon)
    first = await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r1", order_id="o1"))
    assert not first.replayed
    assert first.discount == won(1_000)
    assert first.coupon.state == pb.Coupon.STATE_REDEEMED
    assert first.coupon.order_id == "o1"
    assert first.coupon.HasField("redeem_time")
    assert await now(coupon, held) == first.coupon
    again = await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r1", order_id="o1"))
    assert again.replayed
    assert (again.coupon, again.discount) == (first.coupon, first.discount)
    with refused("COUPON_NOT_USABLE"):
        await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r2", order_id="o2"))
    with refused("REQUEST_ID_REUSED"):
        await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r1", order_id="o2"))


async def test_what_a_coupon_takes_off(coupon: Any) -> None:
    cases: list[tuple[dict[str, Any], int, int]] = [
        ({"fixed_discount": won(1_000)}, 5_000, 1_000),
        ({"fixed_discount": won(1_000)}, 999, 999),
        ({"fixed_discount": won(1_000), "max_discount": won(700)}, 5_000, 700),
        ({"percent_discount": 15}, 999, 149),
        ({"percent_discount": 15}, 6, 0),
        ({"percent_discount": 100}, 10**15, 10**15),
        ({"percent_discount": 50, "max_discount": won(300)}, 5_000, 300),
        ({"percent_discount": 50, "min_order_amount": won(5_000)}, 5_000, 2_500),
    ]
    for number, (fields, amount, discount) in enumerate(cases):
        held = await issued(coupon, request_id=f"c{number}", **fields)
        request = redeem(held.coupon_id, "ann", f"r{number}", amount=amount)
        assert (await coupon.RedeemCoupon(request)).discount == won(discount)


async def test_an_order_may_not_fit_the_coupon(coupon: Any) -> None:
    held = await issued(coupon, min_order_amount=won(5_000))
    with refused("ORDER_AMOUNT_TOO_SMALL"):
        await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r1", amount=4_999))
    with refused("CURRENCY_MISMATCH"):
        await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r1", currency="USD"))
    assert await now(coupon, held) == held
    any_currency = await issued(coupon, request_id="percent", percent_discount=10)
    response = await coupon.RedeemCoupon(
        redeem(any_currency.coupon_id, "ann", "r1", currency="USD")
    )
    assert response.discount == won(500, currency="USD")


async def test_an_expired_coupon_shows_and_says_so(coupon: Any) -> None:
    held = await issued(coupon, lifetime=MICROSECOND)
    assert held.state == pb.Coupon.STATE_ISSUED
    assert (await now(coupon, held)).state == pb.Coupon.STATE_EXPIRED
    with refused("COUPON_EXPIRED"):
        await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r1"))


async def test_the_user_has_no_such_coupon(coupon: Any) -> None:
    anothers = (await issued(coupon, user_id="bob")).coupon_id
    for number, coupon_id in enumerate([anothers, NOBODYS, "nonsense", "\x00", "x" * 9_000]):
        redeem_id, restore_id = f"r{number}", f"s{number}"
        with refused("COUPON_NOT_FOUND") as told:
            await coupon.GetCoupon(get_coupon(coupon_id, "ann"))
        assert told.refusal is not None
        known = {"coupon_id": coupon_id} if coupon_id in (anothers, NOBODYS) else {}
        assert told.refusal.metadata == known | {"user_id": "ann"}
        with refused("COUPON_NOT_FOUND"):
            await coupon.RedeemCoupon(redeem(coupon_id, "ann", redeem_id))
        request = restore(coupon_id, "ann", redeem_id, restore_id)
        first = await coupon.RestoreCoupon(request)
        assert not first.HasField("coupon")
        assert not first.replayed
        assert (await coupon.RestoreCoupon(request)).replayed
        with refused("REDEMPTION_CANCELLED"):
            await coupon.RedeemCoupon(redeem(coupon_id, "ann", redeem_id))


async def test_a_restored_coupon_is_free_for_another_redemption_only(coupon: Any) -> None:
    held = await issued(coupon)
    await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r1", order_id="o1"))
    first = await coupon.RestoreCoupon(restore(held.coupon_id, "ann", "r1", "s1"))
    assert not first.replayed
    assert first.coupon == held
    with refused("REDEMPTION_CANCELLED"):
        await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r1", order_id="o1"))
    second = await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r2", order_id="o2"))
    # Restoring the first again, late, must not touch the second.
    for request_id in ("s1", "s2", "s2"):
        again = await coupon.RestoreCoupon(restore(held.coupon_id, "ann", "r1", request_id))
        assert again.replayed
        assert again.coupon == first.coupon
    assert await now(coupon, held) == second.coupon
    with refused("REQUEST_ID_REUSED"):
        await coupon.RestoreCoupon(restore(held.coupon_id, "ann", "r2", "s1"))
    await coupon.RestoreCoupon(restore(held.coupon_id, "ann", "r2", "s3"))
    assert await now(coupon, held) == held


async def test_a_restoration_before_its_redemption_keeps_it_from_happening(coupon: Any) -> None:
    held = await issued(coupon)
    first = await coupon.RestoreCoupon(restore(held.coupon_id, "ann", "r1", "s1"))
    assert first.coupon == held
    assert not first.replayed
    with refused("REDEMPTION_CANCELLED"):
        await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r1"))
    used = await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r2"))
    again = await coupon.RestoreCoupon(restore(held.coupon_id, "ann", "r1", "s1"))
    assert again.replayed
    assert again.coupon == first.coupon
    other = await coupon.RestoreCoupon(restore(held.coupon_id, "ann", "r1", "s2"))
    assert other.replayed
    assert other.coupon == used.coupon


async def test_a_restoration_names_the_coupon_of_its_redemption(coupon: Any) -> None:
    one = await issued(coupon, request_id="one")
    two = await issued(coupon, request_id="two")
    used = await coupon.RedeemCoupon(redeem(one.coupon_id, "ann", "r1"))
    for coupon_id in (two.coupon_id, NOBODYS):
        with refused("INVALID_FIELD", field="coupon_id"):
            await coupon.RestoreCoupon(restore(coupon_id, "ann", "r1", "s1"))
    assert await now(coupon, one) == used.coupon
    # The same ids of another user are another redemption.
    await coupon.RestoreCoupon(restore(one.coupon_id, "bob", "r1", "s1"))
    assert await now(coupon, one) == used.coupon


async def test_a_coupon_that_expired_in_use_comes_back_expired(
    coupon: Any, sql: Callable[[str], str]
) -> None:
    held = await issued(coupon)
    await coupon.RedeemCoupon(redeem(held.coupon_id, "ann", "r1"))
    sql("UPDATE coupons SET expire_time = issue_time + interval '1 microsecond'")
    assert (await now(coupon, held)).state == pb.Coupon.STATE_REDEEMED
    response = await coupon.RestoreCoupon(restore(held.coupon_id, "ann", "r1", "s1"))
    assert response.coupon.state == pb.Coupon.STATE_EXPIRED
    assert not response.coupon.order_id
    assert not response.coupon.HasField("redeem_time")


async def test_what_was_redeemed_is_known_for_good(coupon: Any, sql: Callable[[str], str]) -> None:
    one = await issued(coupon, request_id="one")
    two = await issued(coupon, request_id="two")
    await coupon.RedeemCoupon(redeem(one.coupon_id, "ann", "r1"))
    sql("DELETE FROM answers")
    with refused("REQUEST_ID_REUSED"):
        await coupon.RedeemCoupon(redeem(two.coupon_id, "ann", "r1"))
    with refused("INVALID_FIELD", field="coupon_id"):
        await coupon.RestoreCoupon(restore(two.coupon_id, "ann", "r1", "s1"))
    response = await coupon.RestoreCoupon(restore(one.coupon_id, "ann", "r1", "s1"))
    assert response.coupon == one
    with refused("REDEMPTION_CANCELLED"):
        await coupon.RedeemCoupon(redeem(one.coupon_id, "ann", "r1"))


async def test_a_users_coupons_are_listed_in_pages_newest_first(coupon: Any) -> None:
    ids = [(await issued(coupon, request_id=f"c{number}")).coupon_id for number in range(5)]
    await issued(coupon, user_id="bob", request_id="bobs")
    seen: list[str] = []
    token = ""
    while True:
        page = await coupon.ListCoupons(
            pb.ListCouponsRequest(user_id="ann", page_size=2, page_token=token)
        )
        seen += [found.coupon_id for found in page.coupons]
        token = page.next_page_token
        if not token:
            break
        with refused("INVALID_PAGE_TOKEN"):
            await coupon.ListCoupons(pb.ListCouponsRequest(user_id="bob", page_token=token))
    assert seen == ids[::-1]
    nobody = await coupon.ListCoupons(pb.ListCouponsRequest(user_id="nobody"))
    assert not nobody.coupons
