"""The client against the real services."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Final

import pytest

from deploy.local.plan import PROJECT
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally_client import AccountNotFound, InvalidField, RequestIdReused, Tally
from tests.support.balances import balance_of, charge, deduct
from tests.support.orders import create_order, create_product, fresh, pay

pytestmark = pytest.mark.asyncio(loop_scope="module")

GUIDE: Final = PROJECT / "docs/guides/python-client.md"
GUIDE_LIMIT_S: Final = 90


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
        await tally.balance.get_balance(balance_of(user_id))
    assert unknown.value.metadata["user_id"] == user_id
    assert unknown.value.request_id == ""
    with pytest.raises(InvalidField) as invalid:
        await tally.balance.deduct_balance(deduct(user_id, 0, ""))
    assert [violation.field for violation in invalid.value.fields] == ["amount.amount_minor"]
    await tally.balance.charge_balance(charge(user_id, 100, "mine"))
    with pytest.raises(RequestIdReused) as reused:
        await tally.balance.charge_balance(charge(user_id, 200, "mine"))
    assert reused.value.request_id == "mine"


async def test_order_is_paid_by_card_and_watched_to_its_end(tally: Tally) -> None:
    user_id = fresh("user")
    product = (await tally.product.create_product(create_product("", 5))).product
    created = await tally.order.create_order(create_order(user_id, {product.product_id: 1}, ""))
    made = created.order
    watched = order_pb2.WatchOrderRequest(order_id=made.order_id, user_id=user_id)
    watching = tally.order.watch_order(watched)
    assert (await anext(watching)).order.state == order_pb2.Order.STATE_PENDING
    payment = pay(made, payment_key=fresh("card-client-"))
    payment.ClearField("request_id")
    paid = await tally.order.pay_order(payment)
    states = [change.order.state async for change in watching]
    assert states[-1] == paid.order.state == order_pb2.Order.STATE_PAID
    payments = await tally.payment.list_payments(
        payment_pb2.ListPaymentsRequest(user_id=user_id, order_id=made.order_id)
    )
    assert [payment.payment_id for payment in payments.payments] == [paid.order.payment_id]


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
