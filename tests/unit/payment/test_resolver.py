"""The resolver's places: as many payments as it may have, and not one more."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from common.money import Money
from payment_service.gateway import Charge, FindOutcome, Unknown
from payment_service.model import BEGINNING, Confirmation, ConfirmPayment, Settle
from payment_service.use_cases.decide import Settled
from payment_service.use_cases.resolver import Resolver

LEASE = timedelta(seconds=15)
NONE: Any = None


class Silent:
    """A gateway that never tells; a look-up lasts until it is let go."""

    def __init__(self) -> None:
        self.finding = 0
        self.go = asyncio.Event()

    async def confirm(self, charge: Charge) -> Unknown:
        await asyncio.sleep(0)
        return Unknown("silent")

    async def find(self, charge: Charge) -> FindOutcome:
        self.finding += 1
        await self.go.wait()
        return Unknown("silent")


class Store:
    """Settles as the decider does, each time after others had their turn."""

    def __init__(self) -> None:
        self.payments: dict[str, Confirmation] = {}

    def claim(self, number: int) -> Confirmation:
        command = ConfirmPayment(
            "order-1", "ann", Money("KRW", 1), f"key-{number}", f"c{number}", f"holder-{number}"
        )
        made = Confirmation.claim(command, f"p{number}", "toss", BEGINNING, LEASE)
        self.payments[f"p{number}"] = made
        return replace(made)

    async def submit(self, command: Settle) -> Settled:
        await asyncio.sleep(0)
        payment = self.payments[command.payment_id]
        payment.settle(command, BEGINNING, LEASE)
        return Settled(replace(payment))


async def test_first_calls_that_end_at_once_keep_to_the_limit() -> None:
    gateway, store = Silent(), Store()
    resolver = Resolver(NONE, cast(Any, store), cast(Any, gateway), lease=LEASE, concurrency=3)
    claims = [store.claim(number) for number in range(10)]
    settled = await asyncio.gather(*(resolver.charge(claim) for claim in claims))
    kept = [one.confirmation for one in settled if one.confirmation and one.confirmation.holder]
    assert len(kept) == 3
    # The others are due for the sweep, which finds no room: the places are taken already.
    assert sum(payment.holder is None for payment in store.payments.values()) == 7
    assert await resolver.sweep() == 0

    for confirmation in kept:
        resolver.begin(confirmation)
    await asyncio.sleep(0)
    assert gateway.finding == 3
    gateway.go.set()
    await resolver.close(10)
    # Every place is free again.
    assert [resolver.reserve(f"later-{number}") for number in range(4)] == [True] * 3 + [False]
