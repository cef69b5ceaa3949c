"""One coupon before many orders, and redemptions against their own undoing.

Every race has its control: the same calls with the guard taken away from outside must do the damage
that the guard prevents, or the race proves nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from common.db import idempotency
from coupon_service.store import coupons, redemptions
from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.coupon_crowd import (
    RIVALS,
    Crowd,
    a_hundred_orders,
    coupons_of,
    delay_second_save,
    live_redemptions,
    one_coupon,
    redeemed_coupons,
    save_unconditionally,
    told,
)
from tests.support.coupons import get_coupon, redeem, restore
from tests.support.refusals import outcome
from tests.support.rendezvous import meet_after

# -- one order a coupon --------------------------------------------------------------------------


async def test_of_a_hundred_orders_one_gets_the_coupon(crowd: Crowd) -> None:
    held = await one_coupon(crowd)
    results = await a_hundred_orders(crowd, held)
    got = [result for result in results if not isinstance(result, str)]
    assert len(got) == 1
    assert Counter(results)["COUPON_NOT_USABLE"] == RIVALS - 1
    response = await crowd.stubs[0].GetCoupon(get_coupon(held.coupon_id, "ann"))
    assert response.coupon == got[0].coupon
    assert live_redemptions(crowd) == 1


async def test_control_without_condition_and_constraint_two_orders_get_it(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await one_coupon(crowd)
    save_unconditionally(monkeypatch)
    crowd.sql("DROP INDEX redemptions_live_once")
    meet_after(monkeypatch, coupons, "load")
    results = await a_hundred_orders(crowd, held)
    assert sum(not isinstance(result, str) for result in results) > 1
    assert live_redemptions(crowd) > 1


async def test_the_condition_alone_lets_one_order_have_it(crowd: Crowd) -> None:
    held = await one_coupon(crowd)
    crowd.sql("DROP INDEX redemptions_live_once")
    results = await a_hundred_orders(crowd, held)
    assert sum(not isinstance(result, str) for result in results) == 1
    assert live_redemptions(crowd) == 1


async def test_the_constraint_alone_lets_one_order_have_it(
    bare_crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await one_coupon(bare_crowd)
    save_unconditionally(monkeypatch)
    meeting = meet_after(monkeypatch, coupons, "load")
    results = await a_hundred_orders(bare_crowd, held)
    assert meeting.met
    assert sum(not isinstance(result, str) for result in results) == 1
    assert Counter(results)["COUPON_NOT_USABLE"] == RIVALS - 1
    assert live_redemptions(bare_crowd) == 1


# -- redeem against restore ----------------------------------------------------------------------


async def test_whoever_comes_first_a_restored_redemption_is_undone(crowd: Crowd) -> None:
    held = await coupons_of(crowd, RIVALS)

    async def redeemed(number: int) -> Any:
        coupon = held[number]
        request = redeem(coupon.coupon_id, coupon.user_id, "r1")
        return await told(lambda: crowd.turn(number).RedeemCoupon(request))

    async def restored(number: int) -> Any:
        coupon = held[number]
        request = restore(coupon.coupon_id, coupon.user_id, "r1", "s1")
        return await told(lambda: crowd.turn(number + 1).RestoreCoupon(request))

    # Half of the restorations are on their way first.
    pairs = [
        [restored(number), redeemed(number)] if number % 2 else [redeemed(number), restored(number)]
        for number in range(RIVALS)
    ]
    results = await asyncio.gather(*(call for pair in pairs for call in pair))
    refusals = {result for result in results if isinstance(result, str)}
    assert refusals <= {"REDEMPTION_CANCELLED"}
    assert live_redemptions(crowd) == 0
    assert redeemed_coupons(crowd) == 0
    # Every coupon is free for another order, and not for the one that was undone.
    for number, coupon in enumerate(held[:10]):
        again = await outcome(
            crowd.turn(number).RedeemCoupon(redeem(coupon.coupon_id, coupon.user_id, "r1"))
        )
        assert again == "REDEMPTION_CANCELLED"
        await crowd.turn(number).RedeemCoupon(redeem(coupon.coupon_id, coupon.user_id, "r2"))


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
async def test_a_restoration_that_finds_nothing_and_a_redemption_in_flight(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """Both have read that there is nothing, then both write: the cancellation has to be seen."""
    held = await one_coupon(crowd)
    if not guarded:
        monkeypatch.setattr(idempotency.AnswerBook, "cancel", lambda *_: None)
    meeting = meet_after(monkeypatch, redemptions, "find")
    redeemed, restored = await asyncio.gather(
        outcome(crowd.stubs[0].RedeemCoupon(redeem(held.coupon_id, "ann", "r1"))),
        crowd.stubs[1].RestoreCoupon(restore(held.coupon_id, "ann", "r1", "s1")),
    )
    assert meeting.met
    assert not restored.replayed
    if guarded:
        assert live_redemptions(crowd) == redeemed_coupons(crowd) == 0
        repeated = await outcome(crowd.stubs[0].RedeemCoupon(redeem(held.coupon_id, "ann", "r1")))
        assert repeated == "REDEMPTION_CANCELLED"
    else:
        assert redeemed.coupon.state == pb.Coupon.STATE_REDEEMED
        assert live_redemptions(crowd) == redeemed_coupons(crowd) == 1


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
async def test_a_restoration_that_comes_late_leaves_the_next_redemption_alone(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """Two undo the first redemption; before the second of them writes, another order redeems."""
    held = await one_coupon(crowd)
    await crowd.stubs[0].RedeemCoupon(redeem(held.coupon_id, "ann", "r1", order_id="o1"))
    if not guarded:
        save_unconditionally(monkeypatch)
    meet_after(monkeypatch, redemptions, "find")
    redeemed = asyncio.Event()
    delay_second_save(monkeypatch, until=redeemed)
    undoing = [
        asyncio.ensure_future(
            crowd.stubs[number].RestoreCoupon(restore(held.coupon_id, "ann", "r1", f"s{number}"))
        )
        for number in range(2)
    ]
    done, _ = await asyncio.wait(undoing, return_when=asyncio.FIRST_COMPLETED)
    faster = undoing.index(done.pop())
    await crowd.stubs[faster].RedeemCoupon(redeem(held.coupon_id, "ann", "r2", order_id="o2"))
    redeemed.set()
    results = await asyncio.gather(*undoing)
    assert live_redemptions(crowd) == 1
    if guarded:
        assert sorted(result.replayed for result in results) == [False, True]
        assert crowd.sql("SELECT order_id FROM coupons").strip() == "o2"
    else:
        # The coupon looks free while an order lives on it.
        assert redeemed_coupons(crowd) == 0


async def test_a_hundred_restorations_give_it_back_once(crowd: Crowd) -> None:
    held = await one_coupon(crowd)
    await crowd.stubs[0].RedeemCoupon(redeem(held.coupon_id, "ann", "r1"))
    results = await asyncio.gather(
        *(
            told(
                lambda number=number: crowd.turn(number).RestoreCoupon(  # type: ignore[misc]
                    restore(held.coupon_id, "ann", "r1", f"s{number}")
                )
            )
            for number in range(RIVALS)
        )
    )
    assert sum(not result.replayed for result in results) == 1
    assert len({result.coupon.SerializeToString(deterministic=True) for result in results}) == 1
    assert live_redemptions(crowd) == redeemed_coupons(crowd) == 0
