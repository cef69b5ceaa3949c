"""The load: customers, busy accounts and merchants, with short deadlines and many duplicates."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from google.protobuf.message import Message

from common.errors import Refusal
from tally.balance.v1.balance_pb2 import DeductBalanceRequest
from tests.chaos.bulk import BulkCall, bulk_issue, bulk_write, calls_of
from tests.chaos.calls import call_once
from tests.chaos.carts import change_carts
from tests.chaos.changes import changed
from tests.chaos.history import Call, History, Intent, Outcome, Read, name_of
from tests.chaos.redemptions import redeem_coupons
from tests.chaos.seats import BUYERS, buy_seats
from tests.chaos.tickets import QUEUERS, queue_for_coupons
from tests.faults.load import KINDS, NO_REFUND, Customers, Kind
from tests.support.balances import balance_of, charge, deduct, refund
from tests.support.crowd import in_groups
from tests.support.payments import cancel, confirm

DEADLINE_MIN_S: Final = 0.01
DEADLINE_MAX_S: Final = 6.0
HURRIED: Final = 0.4
"""The share of calls whose deadline may be as short as this; others leave time for a reply."""
DUPLICATES_MAX: Final = 16
DUPLICATED: Final = 0.15
"""The share of requests that are sent several times at once."""
ABANDONED: Final = 0.05
"""The share of unknown outcomes that nobody asks about again."""
PATIENCE_S: Final = 25.0
PAUSE_S: Final = 0.2
ITEMS_MAX: Final = 30
"""Of a bulk call."""
CUSTOMERS: Final = 5
CLIENTS: Final = 3
"""Clients that change the same few accounts."""
ACCOUNTS: Final = tuple(f"busy-{number}" for number in range(3))
ISSUERS: Final = 1
"""Clients that issue coupons in bulk."""
REDEEMERS: Final = 1
"""Clients that redeem and restore coupons without an order."""
TABS: Final = 3
"""Clients that change the same few carts."""
MERCHANTS: Final = 3
"""Clients that confirm and cancel payments without an order."""
REPEATERS: Final = 2
"""Clients that repeat earlier requests, with the same content and with other content."""
REPEATED_AT_THE_END_MAX: Final = 1_000
REPEATED_AT_ONCE: Final = 16
SHORT_S: Final = 0.5
"""A deadline within the shortest fault."""
ALL_KINDS: Final = (
    *KINDS,
    Kind(name="late", balance=4_000, key="slow_"),
    Kind(name="500, charged", coupon=True, key="error_once_"),
)
_KEYS: Final = tuple(sorted({kind.key for kind in ALL_KINDS} - {"", NO_REFUND}))
"""What a confirm does at the gateway; a refused refund would need a person."""


class Traffic:
    """Makes calls and records them. The choices are those of one seed."""

    def __init__(self, seed: int) -> None:
        self.history = History()
        self.stopping = False
        """Set it, and every client ends when its last request has a final reply."""
        self.random = random.Random(f"load {seed}")
        self.numbers = itertools.count(1)
        """For names and amounts that nobody has used."""
        self._calls: set[asyncio.Task[Call]] = set()
        """Those in flight."""

    # -- calls -----------------------------------------------------------------------------------

    async def repeat(self, method: Any, request: Any) -> Any:
        """Send a request until its reply is final, as tests.faults.load.Repeat."""
        until_s = time.monotonic() + PATIENCE_S
        while True:
            # The first final reply counts: the duplicates go on, and may be served much later.
            for reply in asyncio.as_completed(self.send(method, request)):
                call = await reply
                if call.outcome is Outcome.OK:
                    return call.response
                if call.final and call.refusal is not None:
                    raise call.refusal
            if time.monotonic() > until_s or self.random.random() < ABANDONED:
                return None
            await asyncio.sleep(PAUSE_S)

    async def attempt(self, method: Any, request: Any) -> None:
        """``repeat``, whatever the final reply is."""
        with suppress(Refusal):
            await self.repeat(method, request)

    def send(
        self, method: Any, request: Any, *, changed: bool = False, deadline_s: float = 0.0
    ) -> list[asyncio.Task[Call]]:
        """Send a request once or several times at once, over all replicas, and record it.

        ``deadline_s``: 0 for a random one.
        """
        copies = 1 if deadline_s else self._copies()
        recorded = hasattr(request, "request_id")
        intent = self.history.intent(method, request) if recorded else None

        async def one(deadline_s: float) -> Call:
            call = Call(time.monotonic(), math.inf, Outcome.UNKNOWN, changed=changed)
            try:
                call = await call_once(method, request, deadline_s, changed=changed)
            finally:
                # Also of a call that is cancelled.
                if intent is not None:
                    self.history.add(intent, call)
            return call

        calls = [asyncio.create_task(one(deadline_s or self.deadline_s())) for _ in range(copies)]
        self._calls.update(calls)
        for call in calls:
            call.add_done_callback(self._calls.discard)
        return calls

    async def repeat_bulk(self, bulk: BulkCall) -> None:
        """Send a bulk call until every item has a final reply, as ``repeat``."""
        intents = [self.history.intent(*single) for single in bulk.singles]
        until_s = time.monotonic() + PATIENCE_S
        while True:
            await asyncio.gather(*(self._send_bulk(bulk, intents) for _ in range(self._copies())))
            if all(any(call.final for call in intent.calls) for intent in intents):
                return
            if time.monotonic() > until_s or self.random.random() < ABANDONED:
                return
            await asyncio.sleep(PAUSE_S)

    async def _send_bulk(self, bulk: BulkCall, intents: Sequence[Intent]) -> None:
        calls = [Call(time.monotonic(), math.inf, Outcome.UNKNOWN)] * len(intents)
        try:
            call = await call_once(bulk.method, bulk.request, self.deadline_s())
            calls = calls_of(bulk, call)
        finally:
            # Also of a call that is cancelled.
            for intent, of_item in zip(intents, calls, strict=True):
                self.history.add(intent, of_item)
        if call.outcome is Outcome.OK:
            self.history.succeeded(name_of(bulk.method), call.start_s)

    async def all_ended(self) -> None:
        """Wait until no call is in flight."""
        await asyncio.gather(*self._calls)

    def _copies(self) -> int:
        """How many times a request is sent at once."""
        if self.random.random() < DUPLICATED:
            return self.random.randint(2, DUPLICATES_MAX)
        return 1

    def deadline_s(self) -> float:
        low_s = DEADLINE_MIN_S if self.random.random() < HURRIED else DEADLINE_MAX_S / 4
        return math.exp(self.random.uniform(math.log(low_s), math.log(DEADLINE_MAX_S)))

    # -- clients ---------------------------------------------------------------------------------

    async def run(self, crowd: Customers) -> None:
        """All clients, until ``stopping``."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CUSTOMERS):
                group.create_task(self._shop(crowd))
            for _ in range(CLIENTS):
                group.create_task(self._change_accounts(crowd.balance))
            for _ in range(ISSUERS):
                group.create_task(self._issue_coupons(crowd))
            for _ in range(REDEEMERS):
                group.create_task(redeem_coupons(self, crowd))
            for _ in range(QUEUERS):
                group.create_task(queue_for_coupons(self, crowd))
            for _ in range(TABS):
                group.create_task(change_carts(self, crowd.shop, crowd.product_id))
            for _ in range(MERCHANTS):
                group.create_task(self._confirm_and_cancel(crowd.payment))
            for _ in range(BUYERS):
                group.create_task(
                    buy_seats(crowd.shop, self.repeat, self.random, stopping=lambda: self.stopping)
                )
            for _ in range(REPEATERS):
                group.create_task(self._repeat_earlier())

    async def _shop(self, crowd: Customers) -> None:
        while not self.stopping:
            await crowd.serve(self.random.choice(ALL_KINDS), crowd.shop)

    async def _change_accounts(self, balance: Any) -> None:
        deducted: list[Any] = []
        while not self.stopping:
            user_id, number = self.random.choice(ACCOUNTS), next(self.numbers)
            amount, what = self.random.randint(1, 1_000), self.random.random()
            with suppress(Refusal):
                if what < 0.3:
                    await self._read(balance.GetBalance, user_id)
                elif what < 0.4:
                    await self._change_in_bulk(balance, number, deducted)
                elif what < 0.65:
                    await self.repeat(
                        balance.ChargeBalance, charge(user_id, amount, f"charge-{number}")
                    )
                elif what < 0.9 or not deducted:
                    deducted.append(deduct(user_id, amount, f"deduct-{number}"))
                    await self.repeat(balance.DeductBalance, deducted[-1])
                else:
                    refunding = self._refund_one(balance, deducted, f"refund-{number}")
                    await self.repeat(balance.RefundDeduction, refunding)

    async def _change_in_bulk(self, balance: Any, number: int, deducted: list[Any]) -> None:
        """Changes of all the accounts; one item is there twice, one is refused."""
        requests: list[Message] = []
        for position in range(self.random.randint(1, ITEMS_MAX)):
            change = self.random.choice((charge, deduct))
            user_id, amount = self.random.choice(ACCOUNTS), self.random.randint(1, 1_000)
            requests.append(change(user_id, amount, f"bulk-{number}-{position}"))
        if deducted:
            requests.append(self._refund_one(balance, deducted, f"bulk-refund-{number}"))
        deducted += [each for each in requests if isinstance(each, DeductBalanceRequest)]
        requests.append(self.random.choice(requests))
        requests.append(deduct("nobody", 1, f"bulk-{number}"))
        await self.repeat_bulk(bulk_write(balance, requests))

    def _refund_one(self, balance: Any, deducted: list[Any], request_id: str) -> Message:
        """The refund of one of these deductions, which may be refused from now on."""
        original = deducted.pop(self.random.randrange(len(deducted)))
        self.history.intent(balance.DeductBalance, original).prevented = True
        return refund(original.user_id, original.request_id, request_id)

    async def _issue_coupons(self, crowd: Customers) -> None:
        """Coupons for new users, of whom one asks for two."""
        while not self.stopping:
            number = next(self.numbers)
            users = [f"bulk-{number}-{each}" for each in range(self.random.randint(1, ITEMS_MAX))]
            asked = [*((user_id, "i1") for user_id in users), (users[0], "i2"), (users[-1], "i1")]
            campaign_id = crowd.split_campaign_id if number % 2 else crowd.campaign_id
            await self.repeat_bulk(bulk_issue(crowd.coupon, campaign_id, asked))
            await asyncio.sleep(PAUSE_S)

    async def _read(self, method: Any, user_id: str) -> None:
        call = await call_once(method, balance_of(user_id), self.deadline_s())
        if call.outcome is Outcome.OK:
            read = call.response.balance
            self.history.reads.append(
                Read(user_id, call.start_s, call.end_s, read.version, read.available.amount_minor)
            )

    async def _confirm_and_cancel(self, payment: Any) -> None:
        while not self.stopping:
            number, key = next(self.numbers), self.random.choice(_KEYS)
            name = f"direct-{number}"
            confirming = confirm(
                f"{key}{name}", f"{name}-c", user_id=name, order_id=name, amount_minor=1_000
            )
            cancelling = cancel(f"{name}-c", f"{name}-x", user_id=name)
            intent = self.history.intent(payment.ConfirmPayment, confirming)
            order = [(payment.ConfirmPayment, confirming), (payment.CancelPayment, cancelling)]
            if self.random.random() < 0.2:
                order.reverse()
            elif self.random.random() < 0.4:
                del order[1]
            intent.prevented = len(order) > 1
            for method, request in order:
                await self.attempt(method, request)

    async def _repeat_earlier(self) -> None:
        while not self.stopping:
            await asyncio.sleep(PAUSE_S)
            if not self.history.intents:
                continue
            intent = self.random.choice(list(self.history.intents.values()))
            if not intent.answered:
                continue
            other = changed(intent.request) if self.random.random() < 0.4 else None
            if other is None:
                calls = self.send(intent.method, intent.request)
            else:
                calls = self.send(intent.method, other, changed=True)
            await asyncio.gather(*calls)

    async def repeat_some(self) -> None:
        """Send some requests that were answered once more, all at once."""
        answered = [one for one in self.history.intents.values() if one.answered]
        chosen = self.random.sample(answered, min(len(answered), REPEATED_AT_ONCE))
        calls = [self.send(one.method, one.request, deadline_s=SHORT_S) for one in chosen]
        await asyncio.gather(*itertools.chain.from_iterable(calls))

    # -- after the faults ------------------------------------------------------------------------

    async def repeat_answered(self) -> int:
        """Repeat what was answered, until each reply is final; returns how many requests."""
        answered = [one for one in self.history.intents.values() if one.answered]
        chosen = self.random.sample(answered, min(len(answered), REPEATED_AT_THE_END_MAX))

        async def once_more(intent: Intent) -> None:
            until_s = time.monotonic() + PATIENCE_S
            while time.monotonic() < until_s:
                (sent,) = self.send(intent.method, intent.request, deadline_s=DEADLINE_MAX_S)
                if (await sent).final:
                    return

        await in_groups(once_more, chosen, REPEATED_AT_ONCE)
        return len(chosen)
