"""The client against the real services."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Final

import pytest

from deploy.local.plan import PROJECT
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally_client import (
    AccountNotFound,
    CampaignNotFound,
    CartChanged,
    CouponAlreadyIssued,
    CouponSoldOut,
    InvalidField,
    OrderNotFound,
    OutOfStock,
    PaymentDeclined,
    RequestIdReused,
    Tally,
)
from tests.support.balances import charge, deduct, won
from tests.support.coupons import campaign, issue
from tests.support.orders import UNKNOWN_ID, fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")

GUIDE: Final = PROJECT / "docs/guides/python-client.md"
GUIDE_LIMIT_S: Final = 90


async def product(tally: Tally, *, stock: int = 5, price: int = 4_500) -> str:
    made = await tally.product.create_product(
        order_pb2.CreateProductRequest(name="Mug", price=won(price), stock=stock)
    )
    return made.product.product_id


async def order(tally: Tally, user_id: str, product_id: str, quantity: int = 1) -> order_pb2.Order:
    line = order_pb2.OrderLine(product_id=product_id, quantity=quantity)
    made = await tally.order.create_order(
        order_pb2.CreateOrderRequest(user_id=user_id, items=[line])
    )
    return made.order


async def test_each_call_without_a_request_id_is_a_new_change(tally: Tally) -> None:
    user_id = fresh("user")
    first = await tally.balance.charge_balance(charge(user_id, 100, ""))
    second = await tally.balance.charge_balance(charge(user_id, 100, ""))
    assert first.entry.request_id != second.entry.request_id
    assert second.balance.available.amount_minor == 200
    again = await tally.balance.charge_balance(charge(user_id, 100, second.entry.request_id))
    assert again.replayed
    assert again.entry == second.entry


async def test_refusals_are_raised_as_their_classes_with_details(tally: Tally) -> None:
    user_id = fresh("user")
    with pytest.raises(AccountNotFound) as unknown:
        await tally.balance.get_balance(
            balance_pb2.GetBalanceRequest(user_id=user_id, currency_code="KRW")
        )
    assert unknown.value.metadata["user_id"] == user_id
    assert unknown.value.request_id == ""
    with pytest.raises(InvalidField) as invalid:
        await tally.balance.deduct_balance(deduct(user_id, 0, ""))
    assert [violation.field for violation in invalid.value.fields] == ["amount.amount_minor"]
    await tally.balance.charge_balance(charge(user_id, 100, "mine"))
    with pytest.raises(RequestIdReused) as reused:
        await tally.balance.charge_balance(charge(user_id, 200, "mine"))
    assert reused.value.request_id == "mine"


async def test_sold_out_campaign_is_named_and_final(tally: Tally) -> None:
    made = await tally.coupon.create_campaign(campaign("", quantity=1))
    campaign_id = made.campaign.campaign_id
    await tally.coupon.issue_coupon(issue(campaign_id, "ada", ""))
    with pytest.raises(CouponAlreadyIssued):
        await tally.coupon.issue_coupon(issue(campaign_id, "ada", ""))
    with pytest.raises(CouponSoldOut) as sold_out:
        await tally.coupon.issue_coupon(issue(campaign_id, "bob", ""))
    assert [one.subject for one in sold_out.value.quota] == [f"campaign:{campaign_id}"]
    assert not sold_out.value.may_repeat
    with pytest.raises(CampaignNotFound):
        await tally.coupon.get_campaign(coupon_pb2.GetCampaignRequest(campaign_id=UNKNOWN_ID))


async def test_order_is_paid_by_card_and_watched_to_its_end(tally: Tally) -> None:
    user_id = fresh("user")
    made = await order(tally, user_id, await product(tally))
    watched = order_pb2.WatchOrderRequest(order_id=made.order_id, user_id=user_id)
    watching = tally.order.watch_order(watched)
    assert (await anext(watching)).order.state == order_pb2.Order.STATE_PENDING
    paid = await tally.order.pay_order(
        order_pb2.PayOrderRequest(
            order_id=made.order_id, user_id=user_id, payment_key=fresh("card-client-")
        )
    )
    states = [change.order.state async for change in watching]
    assert states[-1] == paid.order.state == order_pb2.Order.STATE_PAID
    payments = await tally.payment.list_payments(
        payment_pb2.ListPaymentsRequest(user_id=user_id, order_id=made.order_id)
    )
    assert [payment.payment_id for payment in payments.payments] == [paid.order.payment_id]


async def test_declined_card_is_replayed_and_compensated(tally: Tally) -> None:
    user_id = fresh("user")
    made = await order(tally, user_id, await product(tally))
    request = order_pb2.PayOrderRequest(
        order_id=made.order_id, user_id=user_id, payment_key=fresh("decline_client_")
    )
    with pytest.raises(PaymentDeclined) as declined:
        await tally.order.pay_order(request)
    # The refusal is stored: the same request_id returns it again.
    request.request_id = declined.value.request_id
    with pytest.raises(PaymentDeclined):
        await tally.order.pay_order(request)
    saga = await tally.saga.get_saga(order_pb2.GetSagaRequest(order_id=made.order_id))
    assert saga.saga.state == order_pb2.Saga.STATE_COMPENSATED


async def test_refusals_of_stock_carts_and_unknown_orders(tally: Tally) -> None:
    user_id = fresh("user")
    product_id = await product(tally, stock=1)
    with pytest.raises(OutOfStock) as short:
        await order(tally, user_id, product_id, quantity=2)
    assert [one.subject for one in short.value.quota] == [f"product:{product_id}"]
    request = order_pb2.SetCartItemRequest(
        user_id=user_id, product_id=product_id, quantity=1, expected_version=0
    )
    await tally.cart.set_cart_item(request)
    with pytest.raises(CartChanged):
        await tally.cart.set_cart_item(request)
    with pytest.raises(OrderNotFound):
        watched = order_pb2.WatchOrderRequest(order_id=UNKNOWN_ID, user_id=user_id)
        await anext(tally.order.watch_order(watched))


async def test_ledger_is_read_page_by_page(tally: Tally) -> None:
    user_id = fresh("user")
    for _ in range(5):
        await tally.balance.charge_balance(charge(user_id, 1, ""))
    request = balance_pb2.ListLedgerEntriesRequest(
        user_id=user_id, currency_code="KRW", page_size=2
    )
    pages = [page async for page in tally.balance.list_ledger_entries.pages(request)]
    assert [len(page.entries) for page in pages] == [2, 2, 1]
    sequences = [entry.sequence for page in pages for entry in page.entries]
    assert sequences == [5, 4, 3, 2, 1]


async def test_example_of_the_guide_prints_what_the_guide_shows(
    addresses: dict[str, list[str]],
) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    [expected] = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for service, port in (("balance", 50051), ("order", 50053)):
        shown = f'"localhost:{port}"'
        assert shown in code
        code = code.replace(shown, repr(addresses[service]))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        cwd=PROJECT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), GUIDE_LIMIT_S)
    assert (process.returncode, out.decode()) == (0, expected), err.decode()
