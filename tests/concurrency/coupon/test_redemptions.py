"""One coupon and many orders, and redemptions that run against their own restoration.

Every race has its control: without the guard, the same calls must do the damage that it prevents.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.db.idempotency import IdempotencyRecords
from coupon_service.store import coupon as store
from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.coupons import (
    delay_second_save,
    drop_redeem_constraint,
    get_coupon,
    issue_to,
    redeem,
    redemption_counts,
    restore,
    save_unconditionally,
)
from tests.support.crowd import RIVALS, Crowd
from tests.support.refusals import Results
from tests.support.rendezvous import meet_after


@pytest.fixture(scope="module")
def redis_url() -> str:
    """Redemptions take no lock in Redis."""
    return ""


# -- one order for a coupon ----------------------------------------------------------------------


async def a_hundred_orders(crowd: Crowd[Any], coupon: pb.Coupon) -> Results:
    requests = [
        redeem(coupon.coupon_id, "ann", f"r{number}", order_id=f"o{number}")
        for number in range(RIVALS)
    ]
    return await crowd.race("RedeemCoupon", requests, until_final=True)


async def test_one_of_a_hundred_orders_gets_the_coupon(crowd: Crowd[Any]) -> None:
    (coupon,) = await issue_to(crowd, "ann")
    (response,), refusals = await a_hundred_orders(crowd, coupon)
    assert refusals == {"COUPON_NOT_USABLE": RIVALS - 1}
    current = await crowd.turn(0).GetCoupon(get_coupon(coupon.coupon_id, "ann"))
    assert current.coupon == response.coupon
    assert redemption_counts(crowd) == (1, 1)


@pytest.mark.parametrize("guard", ["condition", "constraint", "none"])
async def test_one_order_gets_the_coupon_with_either_guard(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    (coupon,) = await issue_to(crowd, "ann")
    if guard != "condition":
        save_unconditionally(monkeypatch)
    if guard != "constraint":
        drop_redeem_constraint(crowd)
    meeting = meet_after(monkeypatch, store, "load_coupons")
    responses, refusals = await a_hundred_orders(crowd, coupon)
    assert meeting.met
    live, _ = redemption_counts(crowd)
    if guard == "none":
        assert len(responses) > 1
        assert live > 1
    else:
        assert len(responses) == live == 1
        assert refusals == {"COUPON_NOT_USABLE": RIVALS - 1}


# -- redemption against restoration --------------------------------------------------------------


async def test_redeem_and_restore_at_once_leave_the_coupon_free(crowd: Crowd[Any]) -> None:
    coupons = await issue_to(crowd, *(f"u{number}" for number in range(RIVALS)))

    async def pair(number: int, coupon: pb.Coupon) -> tuple[object, object]:
        redeeming = redeem(coupon.coupon_id, coupon.user_id, "r1")
        restoring = restore(coupon.coupon_id, coupon.user_id, "r1", "s1")
        calls = [
            crowd.call(number, "RedeemCoupon", redeeming),
            crowd.call(number + 1, "RestoreCoupon", restoring),
        ]
        # Half of the restorations are sent first.
        one, other = await asyncio.gather(*calls[:: -1 if number % 2 else 1])
        return one, other

    pairs = await asyncio.gather(*(pair(*numbered) for numbered in enumerate(coupons)))
    assert {one for both in pairs for one in both if isinstance(one, str)} <= {
        "REDEMPTION_CANCELLED"
    }
    assert redemption_counts(crowd) == (0, 0)
    # Every coupon is free for another order, and not for the one that was cancelled.
    for number, coupon in enumerate(coupons[:10]):
        again = redeem(coupon.coupon_id, coupon.user_id, "r1")
        assert await crowd.call(number, "RedeemCoupon", again) == "REDEMPTION_CANCELLED"
        other = redeem(coupon.coupon_id, coupon.user_id, "r2")
        assert not isinstance(await crowd.call(number, "RedeemCoupon", other), str)


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
async def test_restoration_cancels_a_redemption_in_flight(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """Both have read that there is nothing, then both write: the tombstone has to be seen."""
    (coupon,) = await issue_to(crowd, "ann")
    if not guarded:
        monkeypatch.setattr(IdempotencyRecords, "cancel", lambda *_: None)
    meeting = meet_after(monkeypatch, store, "find_redemptions")
    redeeming = redeem(coupon.coupon_id, "ann", "r1")
    redeemed, restored = await asyncio.gather(
        crowd.call(0, "RedeemCoupon", redeeming),
        crowd.call(1, "RestoreCoupon", restore(coupon.coupon_id, "ann", "r1", "s1")),
    )
    assert meeting.met
    assert not restored.replayed
    if guarded:
        assert redemption_counts(crowd) == (0, 0)
        assert await crowd.call(0, "RedeemCoupon", redeeming) == "REDEMPTION_CANCELLED"
    else:
        assert redeemed.coupon.state == pb.Coupon.STATE_REDEEMED
        assert redemption_counts(crowd) == (1, 1)


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
async def test_late_restoration_leaves_the_next_redemption_alone(
    crowd: Crowd[Any], monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """Two restore the first redemption; before the second one writes, another order redeems."""
    (coupon,) = await issue_to(crowd, "ann")
    stubs, coupon_id = crowd.clients, coupon.coupon_id
    await stubs[0].RedeemCoupon(redeem(coupon_id, "ann", "r1", order_id="o1"))
    if not guarded:
        save_unconditionally(monkeypatch)
    meet_after(monkeypatch, store, "find_redemptions")
    redeemed = asyncio.Event()
    delay_second_save(monkeypatch, until=redeemed)
    restoring = [
        asyncio.ensure_future(
            stubs[number].RestoreCoupon(restore(coupon_id, "ann", "r1", f"s{number}"))
        )
        for number in range(2)
    ]
    done, _ = await asyncio.wait(restoring, return_when=asyncio.FIRST_COMPLETED)
    faster = restoring.index(done.pop())
    await stubs[faster].RedeemCoupon(redeem(coupon_id, "ann", "r2", order_id="o2"))
    redeemed.set()
    results = await asyncio.gather(*restoring)
    live, shown = redemption_counts(crowd)
    assert live == 1
    if guarded:
        assert sorted(result.replayed for result in results) == [False, True]
        assert crowd.sql("SELECT order_id FROM coupons").strip() == "o2"
    else:
        # The coupon looks free although an order uses it.
        assert shown == 0


async def test_hundred_restorations_restore_once(crowd: Crowd[Any]) -> None:
    (coupon,) = await issue_to(crowd, "ann")
    await crowd.turn(0).RedeemCoupon(redeem(coupon.coupon_id, "ann", "r1"))
    requests = [restore(coupon.coupon_id, "ann", "r1", f"s{number}") for number in range(RIVALS)]
    responses, refusals = await crowd.race("RestoreCoupon", requests, until_final=True)
    assert not refusals
    assert sum(not response.replayed for response in responses) == 1
    assert len({one.coupon.SerializeToString(deterministic=True) for one in responses}) == 1
    assert redemption_counts(crowd) == (0, 0)
