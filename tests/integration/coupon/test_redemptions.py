"""Redeem and restore coupons, as a client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from common.db.database import open_pools
from common.db.idempotency import IdempotencyStore
from common.locking.locks import NoLocks
from common.money import Money
from coupon_service.model.coupon import RedeemCoupon, RestoreCoupon
from coupon_service.tables import answers
from coupon_service.use_cases.coupon import Redemptions
from deploy.local.postgres_roles import ServiceUrls
from tally.coupon.v1 import coupon_pb2 as pb
from tests.support.balances import won
from tests.support.coupons import (
    MICROSECOND,
    get_coupon,
    issued,
    redeem,
    restore,
)
from tests.support.crowd import without_redis
from tests.support.orders import UNKNOWN_ID
from tests.support.refusals import refused
from tests.support.statements import recorded_transactions


async def current(coupon: Any, owned: pb.Coupon) -> pb.Coupon:
    response = await coupon.GetCoupon(get_coupon(owned.coupon_id, owned.user_id))
    found: pb.Coupon = response.coupon
    return found


async def test_one_order_redeems_a_coupon_and_copies_are_replayed(coupon: Any) -> None:
    owned = await issued(coupon)
    first = await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r1", order_id="o1"))
    assert not first.replayed
    assert first.discount == won(1_000)
    assert first.coupon.state == pb.Coupon.STATE_REDEEMED
    assert first.coupon.order_id == "o1"
    assert first.coupon.HasField("redeem_time")
    assert await current(coupon, owned) == first.coupon
    again = await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r1", order_id="o1"))
    assert again.replayed
    assert (again.coupon, again.discount) == (first.coupon, first.discount)
    with refused("COUPON_NOT_USABLE"):
        await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r2", order_id="o2"))


async def test_a_discount_has_the_orders_currency_and_minimum(coupon: Any) -> None:
    owned = await issued(coupon, min_order_amount=won(5_000))
    with refused("ORDER_AMOUNT_TOO_SMALL"):
        await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r1", amount=4_999))
    assert await current(coupon, owned) == owned
    any_currency = await issued(coupon, request_id="percent", percent_discount=10)
    response = await coupon.RedeemCoupon(
        redeem(any_currency.coupon_id, "ann", "r1", currency="USD")
    )
    assert response.discount == won(500, currency="USD")


async def test_a_coupon_that_takes_nothing_off_is_not_used_up(coupon: Any) -> None:
    owned = await issued(coupon, percent_discount=1)
    with refused("COUPON_WITHOUT_EFFECT") as ended:
        await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r1", amount=50))
    assert ended.refusal.metadata == {"coupon_id": owned.coupon_id}
    assert ended.refusal.retry_after_s is None
    assert await current(coupon, owned) == owned
    response = await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r1", amount=100))
    assert response.discount == won(1)


async def test_a_stored_redemption_of_nothing_is_replayed_and_restored(
    coupon: Any, sql: Callable[[str], str]
) -> None:
    """An earlier release redeemed coupons that took nothing off."""
    owned = await issued(coupon, percent_discount=1)
    request = redeem(owned.coupon_id, "ann", "r1", amount=100)
    await coupon.RedeemCoupon(request)
    sql(
        "UPDATE redemptions SET discount_minor = 0;"
        "UPDATE answers SET body = jsonb_set(body::jsonb, '{discount,amount_minor}', '0')::text"
        " WHERE method = 'RedeemCoupon'"
    )
    again = await coupon.RedeemCoupon(request)
    assert (again.replayed, again.discount) == (True, won(0))
    restored = await coupon.RestoreCoupon(restore(owned.coupon_id, "ann", "r1", "s1"))
    assert restored.coupon == owned


async def test_expired_coupon_is_shown_and_refused(coupon: Any) -> None:
    owned = await issued(coupon, lifetime=MICROSECOND)
    assert owned.state == pb.Coupon.STATE_ISSUED
    assert (await current(coupon, owned)).state == pb.Coupon.STATE_EXPIRED
    with refused("COUPON_EXPIRED"):
        await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r1"))


async def test_restored_coupon_is_free_for_another_redemption_only(coupon: Any) -> None:
    owned = await issued(coupon)
    await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r1", order_id="o1"))
    first = await coupon.RestoreCoupon(restore(owned.coupon_id, "ann", "r1", "s1"))
    assert not first.replayed
    assert first.coupon == owned
    with refused("REDEMPTION_CANCELLED"):
        await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r1", order_id="o1"))
    second = await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r2", order_id="o2"))
    # A repeated restoration of the first must not change the second.
    for request_id in ("s1", "s2", "s2"):
        again = await coupon.RestoreCoupon(restore(owned.coupon_id, "ann", "r1", request_id))
        assert (again.replayed, again.coupon) == (True, first.coupon)
    assert await current(coupon, owned) == second.coupon
    await coupon.RestoreCoupon(restore(owned.coupon_id, "ann", "r2", "s3"))
    assert await current(coupon, owned) == owned


async def test_restoration_before_its_redemption_prevents_it(coupon: Any) -> None:
    owned = await issued(coupon)
    first = await coupon.RestoreCoupon(restore(owned.coupon_id, "ann", "r1", "s1"))
    assert first.coupon == owned
    assert not first.replayed
    with refused("REDEMPTION_CANCELLED"):
        await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r1"))
    used = await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r2"))
    again = await coupon.RestoreCoupon(restore(owned.coupon_id, "ann", "r1", "s1"))
    assert (again.replayed, again.coupon) == (True, first.coupon)
    other = await coupon.RestoreCoupon(restore(owned.coupon_id, "ann", "r1", "s2"))
    assert (other.replayed, other.coupon) == (True, used.coupon)


async def test_restoration_of_another_coupon_is_refused(coupon: Any) -> None:
    one = await issued(coupon, request_id="one")
    two = await issued(coupon, request_id="two")
    used = await coupon.RedeemCoupon(redeem(one.coupon_id, "ann", "r1"))
    for coupon_id in (two.coupon_id, UNKNOWN_ID):
        with refused("INVALID_FIELD", field="coupon_id"):
            await coupon.RestoreCoupon(restore(coupon_id, "ann", "r1", "s1"))
    assert await current(coupon, one) == used.coupon
    # The same ids of another user are another redemption.
    await coupon.RestoreCoupon(restore(one.coupon_id, "bob", "r1", "s1"))
    assert await current(coupon, one) == used.coupon


async def test_coupon_that_expired_while_redeemed_is_restored_expired(
    coupon: Any, sql: Callable[[str], str]
) -> None:
    owned = await issued(coupon)
    await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r1"))
    sql("UPDATE coupons SET expire_time = issue_time + interval '1 microsecond'")
    assert (await current(coupon, owned)).state == pb.Coupon.STATE_REDEEMED
    response = await coupon.RestoreCoupon(restore(owned.coupon_id, "ann", "r1", "s1"))
    assert response.coupon.state == pb.Coupon.STATE_EXPIRED
    assert not response.coupon.order_id
    assert not response.coupon.HasField("redeem_time")


async def test_redemption_is_known_after_its_record_is_deleted(
    coupon: Any, sql: Callable[[str], str]
) -> None:
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


@without_redis
async def test_a_coupon_is_restored_and_redeemed_again_in_one_batch(
    coupon: Any, coupon_database: ServiceUrls
) -> None:
    """The row that frees the coupon is written before the row that takes it."""
    owned = await issued(coupon)
    await coupon.RedeemCoupon(redeem(owned.coupon_id, "ann", "r1", order_id="o1"))
    database = open_pools(coupon_database.runtime, application_name="one batch", pool_size=4)
    redemptions = Redemptions(database, NoLocks(), IdempotencyStore(answers))
    with recorded_transactions() as transactions:
        await asyncio.gather(
            redemptions.write(RestoreCoupon(owned.coupon_id, "ann", "r1", "s1")),
            redemptions.write(
                RedeemCoupon(owned.coupon_id, "ann", "o2", Money("KRW", 5_000), "r2")
            ),
        )
    await redemptions.close()
    await database.close()
    [batch] = [each for each in transactions if any("redemptions" in text for text in each)]
    [frees] = [at for at, text in enumerate(batch) if "UPDATE redemptions" in text]
    [takes] = [at for at, text in enumerate(batch) if "INSERT INTO redemptions" in text]
    assert frees < takes
    assert (await current(coupon, owned)).order_id == "o2"
