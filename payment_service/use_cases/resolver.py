"""What is left to do at the gateway, until each payment has come to its end.

Whoever is at a payment holds it under a lease, which a heartbeat renews for as long as the replica
lives, however long the gateway takes: what a dead replica had there is found out about soon. To
lose a lease while alive costs a question more at the gateway, and nothing else.

An unknown outcome is asked for by the payment key. What the gateway does not know is confirmed
again under the same idempotency key: that way a first confirm that is still on its way can only be
told the second's answer. What is confirmed and cancelled is given back. Nothing is ever guessed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import structlog
from prometheus_client import Counter

from common.batching.lane import Lane
from common.db.engines import Database
from common.errors import ConflictRetriesExhausted, DatabaseUnavailable, Overloaded, Refusal
from common.ids import new_id
from common.metrics import REGISTRY
from common.tasks import DetachedTasks
from payment_service import store
from payment_service.gateway import (
    Cancelled,
    Gateway,
    Mismatch,
    NotCancellable,
    NotFound,
    Rejected,
    Unknown,
)
from payment_service.model import Command, Confirmation, Outcome, Settle, State
from payment_service.use_cases.decide import Settled

BACKOFF_S: Final = 0.25
BACKOFF_MAX_S: Final = 30.0
STORE_TRIES_MAX: Final = 6
_STORE_PAUSE_S: Final = 0.2

_outcomes = Counter(
    "tally_gateway_outcomes",
    "What the payment gateway was heard to say, by what it was asked.",
    ("asked", "outcome"),
    registry=REGISTRY,
)
_log = structlog.stdlib.get_logger()


class Resolver:
    """Works on open payments, each under a lease."""

    def __init__(
        self,
        database: Database,
        lane: Lane[Command],
        gateway: Gateway,
        *,
        lease: timedelta,
        concurrency: int,
    ) -> None:
        self._database = database
        self._lane = lane
        self._gateway = gateway
        self._lease = lease
        self._concurrency = concurrency
        self._detached = DetachedTasks("resolver")
        self._reserved: set[str] = set()
        """Holders with a place that they have not begun in yet."""
        self._held: dict[str, str] = {}
        """Who holds each payment that this replica is at, by payment_id."""

    def reserve(self, holder: str) -> bool:
        """Keep a place for this holder to begin in; returns whether there was one.

        It is given up by ``begin`` or ``give_up``.
        """
        if self._room <= 0:
            return False
        self._reserved.add(holder)
        return True

    def give_up(self, holder: str) -> None:
        """Leave a reserved place to others, if it was not begun in."""
        self._reserved.discard(holder)

    @property
    def _room(self) -> int:
        return self._concurrency - len(self._detached) - len(self._reserved)

    async def close(self, limit_s: float) -> None:
        """Let what is under way end; what does not is taken up by others after its lease."""
        await self._detached.close(limit_s)

    async def sweep(self) -> int:
        """Take up payments that are due, as many as there is room for; returns how many."""
        room = self._room
        if room <= 0:
            return 0
        async with self._database.begin() as connection:
            taken = await store.take(connection, holder=new_id(), lease=self._lease, size=room)
        for confirmation in taken:
            self.begin(confirmation)
        return len(taken)

    async def beat(self) -> int:
        """Renew the lease of every payment that this replica is at; returns how many it kept."""
        if not self._held:
            return 0
        async with self._database.begin() as connection:
            return await store.renew(connection, self._held, lease=self._lease)

    @contextmanager
    def _holding(self, confirmation: Confirmation) -> Iterator[str]:
        holder, payment_id = confirmation.holder, confirmation.payment.payment_id
        assert holder is not None
        self._held[payment_id] = holder
        try:
            yield holder
        finally:
            # Unless it was lost meanwhile, and taken up again by this very replica.
            if self._held.get(payment_id) == holder:
                del self._held[payment_id]

    def begin(self, confirmation: Confirmation) -> None:
        """Work on a payment that is held by us, beside everything else."""
        if confirmation.holder is not None:
            self.give_up(confirmation.holder)
        self._detached.begin(self.work(confirmation))

    async def charge(self, confirmation: Confirmation) -> Settled:
        """The claim's first call, and its outcome stored.

        A payment that comes back open and still held has a place reserved: ``begin`` or
        ``give_up`` comes next.
        """
        with self._holding(confirmation) as holder:
            outcome = await self._gateway.confirm(confirmation.charge)
            _note("confirm", outcome, confirmation)
            # A confirmed one has something left to do only if its cancellation came meanwhile: too
            # rare to keep a place for every payment. The sweep gives it back.
            go_on = isinstance(outcome, Unknown | Mismatch) and self.reserve(holder)
            kept = False
            try:
                settled = await self._settle(confirmation, outcome, go_on=go_on)
                left = settled.confirmation
                kept = left is not None and left.open and left.holder == holder
            finally:
                if not kept:
                    self.give_up(holder)
        return settled

    async def work(self, confirmation: Confirmation) -> tuple[Outcome, Settled]:
        """Do what is left for a payment that we hold, as far as the gateway lets us."""
        with self._holding(confirmation) as holder:
            while True:
                outcome = await self._ask(confirmation)
                settled = await self._settle(confirmation, outcome, go_on=True)
                left = settled.confirmation
                if left is None or not left.open or left.holder != holder:
                    return outcome, settled
                confirmation = left

    async def _ask(self, confirmation: Confirmation) -> Outcome:
        """One step: find out what is not known, or give back what was charged."""
        if confirmation.payment.state is State.CONFIRMED:
            return await self._give_back(confirmation)
        found = await self._gateway.find(confirmation.charge)
        _note("find", found, confirmation)
        if not isinstance(found, NotFound):
            return found
        confirmed = await self._gateway.confirm(confirmation.charge)
        _note("confirm", confirmed, confirmation)
        return confirmed

    async def _give_back(self, confirmation: Confirmation) -> Outcome:
        assert confirmation.cancel_reason is not None
        outcome = await self._gateway.cancel(confirmation.refund, confirmation.cancel_reason)
        _note("cancel", outcome, confirmation)
        if not isinstance(outcome, NotCancellable):
            return outcome
        # Perhaps because it was given back by other means: that would be as good.
        found = await self._gateway.find(confirmation.charge)
        _note("find", found, confirmation)
        return found if isinstance(found, Cancelled) else outcome

    async def _settle(
        self, confirmation: Confirmation, outcome: Outcome, *, go_on: bool
    ) -> Settled:
        """Store what was heard. It cannot be heard again for free, so the database gets time.

        Raises the last refusal when that was in vain; the lease then lets anybody ask again.
        """
        assert confirmation.holder is not None
        command = Settle(
            confirmation.payment.payment_id,
            confirmation.payment.user_id,
            confirmation.request_id,
            outcome,
            confirmation.holder,
            timedelta(seconds=_pause_s(confirmation.tries)),
            go_on=go_on,
        )
        last: Refusal = DatabaseUnavailable()
        for number in range(STORE_TRIES_MAX):
            try:
                settled: Settled = await self._lane.submit(command)
            except (ConflictRetriesExhausted, DatabaseUnavailable, Overloaded) as refusal:
                last = refusal
                await asyncio.sleep(_STORE_PAUSE_S * 2**number * random.random())  # noqa: S311
            else:
                return settled
        raise last


def _pause_s(tries: int) -> float:
    """Until the next try: doubling up to a limit, with jitter so that replicas spread out."""
    ceiling = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(tries, 30))
    return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


def _note(asked: str, outcome: Outcome, confirmation: Confirmation) -> None:
    _outcomes.labels(asked, type(outcome).__name__).inc()
    if isinstance(outcome, Mismatch | NotCancellable | Rejected) or (
        asked == "cancel" and isinstance(outcome, NotFound)
    ):
        # None of these passes by itself: somebody has to look.
        _log.error(
            "gateway_needs_attention",
            asked=asked,
            outcome=repr(outcome),
            payment_id=confirmation.payment.payment_id,
        )
