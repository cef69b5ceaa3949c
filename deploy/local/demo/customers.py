"""One customer's way through the sale."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from deploy.local.demo.happened import Answer, Happened
from deploy.local.demo.script import (
    AT_THE_TILL_MINOR,
    CHARGE_MINOR,
    CURRENCY,
    GOOD,
    MUG,
    PRICES_MINOR,
    PRINT,
    TIMES,
    WITH_COUPON,
    WITHOUT_COUPON,
    Part,
    Pay,
    Share,
    Then,
    Twins,
    Visit,
    cart,
)
from deploy.local.demo.shop import Shop
from tally.balance.v1 import balance_pb2
from tally.coupon.v1 import coupon_pb2
from tally.order.v1 import order_pb2
from tally.payment.v1 import payment_pb2
from tally.type.v1 import money_pb2
from tally_client import TallyError

TRIES_MAX: Final = 5
"""How often a customer tries to pay whom the service told that it could not be tried."""
MEANWHILE_S: Final = 0.05
TILL: Final = "till"


def won(amount_minor: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code=CURRENCY, amount_minor=amount_minor)


@dataclass(frozen=True, slots=True)
class Sale:
    """What all customers share."""

    shop: Shop
    happened: Happened
    products: Mapping[str, str]
    """The id of each product, by name."""
    campaign_id: str


class Customer:
    """Plays a part. Every intent has one request_id, however often it is sent."""

    def __init__(self, part: Part, sale: Sale) -> None:
        self._part = part
        self._name = part.name
        self._sale = sale
        self._shop = sale.shop
        self._happened = sale.happened
        self._turn: int | None = None
        """The coupon's number in the order of arrival, while it is not used."""

    # -- before the doors open -------------------------------------------------------------------

    async def charge(self) -> None:
        request = balance_pb2.ChargeBalanceRequest(
            user_id=self._name, amount=won(CHARGE_MINOR), request_id=f"{self._name}:charge"
        )

        async def send(_: int) -> Answer:
            response = await self._shop.ask(self._shop.tally.balance.charge_balance, request)
            return Answer(response.entry.entry_id, response.replayed)

        answer = await self._send("charge", send, TIMES if self._part.hasty else 1)
        if answer.id:
            self._happened.charged_minor[self._name] += CHARGE_MINOR

    async def race_for_coupon(self) -> None:
        request = coupon_pb2.IssueCouponRequest(
            campaign_id=self._sale.campaign_id,
            user_id=self._name,
            request_id=f"{self._name}:coupon",
        )

        async def send(_: int) -> Answer:
            response = await self._shop.ask(self._shop.tally.coupon.issue_coupon, request)
            self._turn = response.coupon.issue_number
            return Answer(response.coupon.coupon_id, response.replayed)

        answer = await self._send("issue", send, TIMES if self._part.hasty else 1)
        if answer.id:
            self._happened.coupons[self._name] = answer.id
        self._happened.counts[answer.reason or "COUPON_ISSUED"] += 1

    # -- shopping --------------------------------------------------------------------------------

    async def shop(self, on_visit: Callable[[], None]) -> None:
        """All visits, one after the other; ``on_visit`` is told after each."""
        first = WITHOUT_COUPON if self._turn is None else WITH_COUPON
        turn = self._part.number if self._turn is None else self._turn
        for at, visit in enumerate([first[turn % len(first)], *self._part.visits]):
            await self._visit(visit, f"{self._name}:{at}")
            on_visit()
        if self._part.at_the_till:
            await self._pay_at_the_till()

    async def _visit(self, visit: Visit, intent: str) -> None:
        times = 1 if visit.twins is Twins.NO else TIMES
        order_id = await self._order(visit, intent, times)
        if not order_id and visit.wants == PRINT:
            visit = replace(visit, wants=MUG)
            order_id = await self._order(visit, f"{intent}:instead", times)
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

    async def _order(self, visit: Visit, intent: str, times: int) -> str:
        """The order's id, or nothing if it could not be had."""
        request = order_pb2.CreateOrderRequest(
            user_id=self._name,
            items=[
                order_pb2.OrderLine(product_id=self._sale.products[name], quantity=quantity)
                for name, quantity in cart(visit, self._part.number).items()
            ],
            request_id=f"{intent}:order",
        )

        async def send(_: int) -> Answer:
            response = await self._shop.ask(self._shop.tally.order.create_order, request)
            return Answer(response.order.order_id, response.replayed)

        answer = await self._send("order", send, times)
        if answer.id:
            self._happened.orders[answer.id] = self._name
        self._happened.counts[answer.reason or "ORDERED"] += 1
        return answer.id

    async def _pay(self, visit: Visit, order_id: str, intent: str) -> bool:
        """Whether the order was paid."""
        if visit.pay is None:
            return False
        for attempt in range(TRIES_MAX):
            answer = await self._attempt(visit, visit.pay, order_id, f"{intent}:pay{attempt}")
            # Each attempt that failed is over and put back: a new one is a new intent.
            if answer.reason != "GATEWAY_UNAVAILABLE":
                break
        return bool(answer.id)

    async def _attempt(self, visit: Visit, pay: Pay, order_id: str, intent: str) -> Answer:
        due_minor = sum(
            PRICES_MINOR[name] * quantity
            for name, quantity in cart(visit, self._part.number).items()
        )
        request = order_pb2.PayOrderRequest(order_id=order_id, user_id=self._name)
        if pay.coupon and self._name in self._happened.coupons:
            request.coupon_id = self._happened.coupons[self._name]
        if pay.card is not None:
            request.payment_key = pay.card + intent
        if pay.balance is Share.HALF:
            request.balance_amount.CopyFrom(won(due_minor // 2))

        async def send(time: int) -> Answer:
            mine = order_pb2.PayOrderRequest()
            mine.CopyFrom(request)
            mine.request_id = f"{intent}.{time}" if visit.twins is Twins.OWN_IDS else intent
            response = await self._shop.ask(self._shop.tally.order.pay_order, mine)
            return Answer(response.order.order_id, response.replayed)

        answer = await self._send(
            "pay",
            send,
            1 if visit.twins is Twins.NO else TIMES,
            own_ids=visit.twins is Twins.OWN_IDS,
        )
        self._happened.counts[answer.reason or "PAID"] += 1
        if pay.card is not None:
            self._happened.cards[pay.card, answer.reason or "PAID"] += 1
        return answer

    async def _cancel(self, order_id: str, intent: str, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        request = order_pb2.CancelOrderRequest(
            order_id=order_id,
            user_id=self._name,
            reason="changed my mind",
            request_id=f"{intent}:cancel",
        )

        async def send(_: int) -> Answer:
            response = await self._shop.ask(self._shop.tally.order.cancel_order, request)
            return Answer(response.order.order_id, response.replayed)

        answer = await self._send("cancel", send, 1)
        self._happened.counts[answer.reason or "CANCELLED"] += 1

    async def _pay_at_the_till(self) -> None:
        """Five confirmations of one payment key at once, under five request_ids."""
        key = f"{GOOD}{TILL}:{self._name}"

        async def send(time: int) -> Answer:
            request = payment_pb2.ConfirmPaymentRequest(
                order_id=f"{TILL}:{self._name}",
                user_id=self._name,
                amount=won(AT_THE_TILL_MINOR),
                payment_key=key,
                request_id=f"{self._name}:{TILL}.{time}",
            )
            response = await self._shop.ask(self._shop.tally.payment.confirm_payment, request)
            return Answer(response.payment.payment_id, response.replayed)

        answer = await self._send("confirm", send, TIMES, own_ids=True)
        if answer.id:
            self._happened.till_keys[self._name] = key

    async def _send(
        self,
        what: str,
        send: Callable[[int], Awaitable[Answer]],
        times: int,
        *,
        own_ids: bool = False,
    ) -> Answer:
        """Send it that often at once. Returns a success, if there is one, else a refusal."""

        async def one(time: int) -> Answer:
            try:
                return await send(time)
            except TallyError as refusal:
                return self._happened.refused(what, refusal)

        answers = await asyncio.gather(*(one(time) for time in range(times)))
        if times > 1:
            self._happened.sent_at_once(what, answers, own_ids=own_ids)
        return next((answer for answer in answers if answer.id), answers[0])
