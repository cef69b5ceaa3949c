"""What one customer does in the sale."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Final

from deploy.local.demo.client import DemoClient, Request, Response
from deploy.local.demo.results import CallResult, Duplicates, SaleResults
from deploy.local.demo.scenario import (
    CHARGE_MINOR,
    CURRENCY,
    DIRECT_MINOR,
    GOOD,
    MUG,
    PRICES_MINOR,
    PRINT,
    TAKES_SECONDS,
    TIMES,
    WITH_COUPON,
    WITHOUT_COUPON,
    CustomerPlan,
    Duplicate,
    Pay,
    Share,
    Then,
    Visit,
    cart,
)
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally.type.v1 import money_pb2
from tally_client import TallyError, Unary

TRIES_MAX: Final = 5
"""How many times a customer tries to pay while the gateway is unavailable."""
MEANWHILE_S: Final = 0.05
DIRECT: Final = "direct"
ORDER_ID: Final = attrgetter("order.order_id")


def won(amount_minor: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code=CURRENCY, amount_minor=amount_minor)


@dataclass(frozen=True, slots=True)
class Sale:
    """What all customers share."""

    client: DemoClient
    results: SaleResults
    products: Mapping[str, str]
    """The id of each product, by name."""
    campaign_id: str


class Customer:
    """Carries out a plan. Every intent has one request_id, however often it is sent."""

    def __init__(self, plan: CustomerPlan, sale: Sale) -> None:
        self._plan = plan
        self._name = plan.name
        self._sale = sale
        self._tally = sale.client.tally
        self._results = sale.results
        self._times = TIMES if plan.sends_duplicates else 1
        self._issue_number: int | None = None

    # -- before the sale ---------------------------------------------------------------------------

    async def charge(self) -> None:
        request = balance_pb2.ChargeBalanceRequest(
            user_id=self._name, amount=won(CHARGE_MINOR), request_id=f"{self._name}:charge"
        )
        result = await self._send(
            "charge",
            self._tally.balance.charge_balance,
            [request] * self._times,
            attrgetter("entry.entry_id"),
        )
        if result.id:
            self._results.charged_minor[self._name] += CHARGE_MINOR

    async def race_for_coupon(self) -> None:
        request = coupon_pb2.IssueCouponRequest(
            campaign_id=self._sale.campaign_id,
            user_id=self._name,
            request_id=f"{self._name}:coupon",
        )

        def issued(response: coupon_pb2.IssueCouponResponse) -> str:
            self._issue_number = response.coupon.issue_number
            return response.coupon.coupon_id

        result = await self._send(
            "issue", self._tally.coupon.issue_coupon, [request] * self._times, issued
        )
        if result.id:
            self._results.coupons[self._name] = result.id

    # -- the sale ----------------------------------------------------------------------------------

    async def shop(self, on_visit: Callable[[], None]) -> None:
        """Make all visits, one after another, and call ``on_visit`` after each."""
        if self._issue_number is None:
            first = WITHOUT_COUPON[self._plan.number % len(WITHOUT_COUPON)]
        else:
            first = WITH_COUPON[self._issue_number % len(WITH_COUPON)]
        for number, visit in enumerate([first, *self._plan.visits]):
            await self._visit(visit, f"{self._name}:{number}")
            on_visit()
        if self._plan.pays_directly:
            await self._pay_directly()

    async def _visit(self, visit: Visit, intent: str) -> None:
        order_id = await self._order(visit, intent)
        if not order_id and visit.wants == PRINT:
            visit = replace(visit, wants=MUG)
            order_id = await self._order(visit, f"{intent}:instead")
        if not order_id:
            return
        if visit.then is Then.CANCEL_MEANWHILE:
            await asyncio.gather(
                self._pay(visit, order_id, intent), self._cancel(order_id, intent, MEANWHILE_S)
            )
            return
        paid = await self._pay(visit, order_id, intent)
        if visit.then is Then.CANCEL:
            await self._cancel(order_id, intent)
        elif visit.then is Then.PAY_BY_BALANCE and not paid:
            again = replace(visit, pay=Pay(Share.ALL))
            await self._pay(again, order_id, f"{intent}:again")

    async def _order(self, visit: Visit, intent: str) -> str:
        """Order what the visit wants; the order's id, or '' if it was refused."""
        request = order_pb2.CreateOrderRequest(
            user_id=self._name,
            items=[
                order_pb2.OrderLine(product_id=self._sale.products[name], quantity=quantity)
                for name, quantity in cart(visit, self._plan.number).items()
            ],
            request_id=f"{intent}:order",
        )
        result = await self._send(
            "order",
            self._tally.order.create_order,
            [request] * (1 if visit.duplicate is Duplicate.NO else TIMES),
            ORDER_ID,
        )
        if result.id:
            self._results.orders[result.id] = self._name
        return result.id

    async def _pay(self, visit: Visit, order_id: str, intent: str) -> bool:
        """Pay as the visit says; whether the order was paid."""
        if visit.pay is None:
            return False
        for attempt in range(TRIES_MAX):
            result = await self._try_to_pay(visit, visit.pay, order_id, f"{intent}:pay{attempt}")
            # A failed attempt has been compensated: another attempt is another intent.
            if result.reason != "GATEWAY_UNAVAILABLE":
                break
        return bool(result.id)

    async def _try_to_pay(self, visit: Visit, pay: Pay, order_id: str, intent: str) -> CallResult:
        lines = cart(visit, self._plan.number).items()
        due_minor = sum(PRICES_MINOR[name] * quantity for name, quantity in lines)

        def request(request_id: str) -> order_pb2.PayOrderRequest:
            return order_pb2.PayOrderRequest(
                order_id=order_id,
                user_id=self._name,
                coupon_id=self._results.coupons.get(self._name) if pay.coupon else None,
                payment_key=None if pay.card is None else pay.card + intent,
                balance_amount=won(due_minor // 2) if pay.balance is Share.HALF else None,
                request_id=request_id,
            )

        requests = {
            Duplicate.NO: [request(intent)],
            Duplicate.SAME_ID: [request(intent)] * TIMES,
            Duplicate.OWN_IDS: [request(f"{intent}.{number}") for number in range(TIMES)],
        }
        result = await self._send(
            "pay",
            self._tally.order.pay_order,
            requests[visit.duplicate],
            ORDER_ID,
            own_ids=visit.duplicate is Duplicate.OWN_IDS,
            slow=pay.card in TAKES_SECONDS,
        )
        if pay.card is not None:
            self._results.cards[pay.card, result.reason or "PAID"] += 1
        return result

    async def _cancel(self, order_id: str, intent: str, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        request = order_pb2.CancelOrderRequest(
            order_id=order_id,
            user_id=self._name,
            reason="changed my mind",
            request_id=f"{intent}:cancel",
        )
        await self._send("cancel", self._tally.order.cancel_order, [request], ORDER_ID)

    async def _pay_directly(self) -> None:
        """Confirm one payment key five times at once, with five request_ids and no order."""
        key = f"{GOOD}{DIRECT}:{self._name}"
        requests = [
            payment_pb2.ConfirmPaymentRequest(
                order_id=f"{DIRECT}:{self._name}",
                user_id=self._name,
                amount=won(DIRECT_MINOR),
                payment_key=key,
                request_id=f"{self._name}:{DIRECT}.{number}",
            )
            for number in range(TIMES)
        ]
        result = await self._send(
            "confirm",
            self._tally.payment.confirm_payment,
            requests,
            attrgetter("payment.payment_id"),
            own_ids=True,
        )
        if result.id:
            self._results.direct_keys[self._name] = key

    async def _send(
        self,
        what: str,
        method: Unary[Request, Response],
        requests: Sequence[Request],
        id_of: Callable[[Response], str],
        *,
        own_ids: bool = False,
        slow: bool = False,
    ) -> CallResult:
        """Send all requests of one intent at once; a success, if there is one, else a refusal."""

        async def send(request: Request) -> CallResult:
            try:
                response: Any = await self._sale.client.call(method, request, slow=slow)
            except TallyError as refusal:
                return self._results.add_refusal(what, refusal)
            return CallResult(id_of(response), response.replayed)

        results = await asyncio.gather(*map(send, requests))
        if len(results) > 1:
            self._results.duplicates.append(Duplicates(what, own_ids, results))
        result = next((result for result in results if result.id), results[0])
        self._results.counts[result.reason or what] += 1
        return result
