"""The work at the gateway on payments that are open, until each has a final state.

A replica works on a payment under a lease, which a heartbeat renews while the replica lives,
however long the gateway takes. The payments of a dead replica are soon acquired by another. If a
live replica loses a lease, that costs one more call to the gateway, and nothing else.

An unknown outcome is looked up by the payment_key. If the gateway does not know the key, the
confirm is sent again under the same idempotency key: a first confirm that is still in transit then
only gets the second one's response. No outcome is ever guessed.

No confirm is permitted for a payment that carries a cancellation: it is only looked up, and given
back if it was charged. Each confirm needs a permission of the database that is at most PERMISSION_S
old when it is sent, from its claim or from BeginConfirm. One that was permitted before the
cancellation was stored counts as in transit. A refund that the gateway refuses permanently ends the
work; a person has to settle it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from common.backoff import Backoff
from common.batching.lane import Lane
from common.db.database import Database
from common.db.repeat import in_transaction
from common.errors import ConflictRetriesExhausted, DatabaseUnavailable, Overloaded, Refusal
from common.ids import new_id
from common.money import Money
from common.tasks import DetachedTasks
from payment_service.gateway.outcomes import (
    GatewayOutcome,
    Mismatch,
    NotCancellable,
    NotFound,
    NotSent,
    Saturated,
    Unknown,
    Unsupported,
)
from payment_service.gateway.toss import TossGateway
from payment_service.model.confirmation import Confirmation
from payment_service.model.outcome import is_known
from payment_service.model.payment import PaymentState
from payment_service.model.payment_command import BeginConfirm, Command, RecordOutcome
from payment_service.store import lease as store
from payment_service.use_cases.decider import Reply
from payment_service.use_cases.gateway_calls import counted

_RETRY: Final = Backoff(0.25, 30.0)
"""Pauses between two tries at one payment."""
RECORDING_MAX: Final = 64
"""Outcomes of the background work that may wait to be recorded without a slot: payments whose rows
are held must not keep others from the gateway."""
PERMISSION_S: Final = 0.5
"""How long the database's permission for a confirm lasts, from before it was asked for: well below
a lease. A cancellation that is stored in that time finds the confirm in transit."""
PERMISSIONS_MAX: Final = 3
"""How often a permission is asked for that comes too late, until the confirm is given up."""
_FIRST_RETRY_S: Final = 0.05
"""The pause before the first retry, if the replica that made the first call has a free slot."""
CLOSE_REASON: Final = "payment method not supported"
"""Sent to the gateway when an account is closed that no request has cancelled."""
STORE_TRIES_MAX: Final = 6
_STORE_RETRY: Final = Backoff(0.2, 6.4, jitter=(0.0, 1.0))

_log = structlog.stdlib.get_logger()


class Resolver:
    """Works on open payments, each under a lease."""

    def __init__(
        self,
        database: Database,
        lane: Lane[Command, Reply],
        gateway: TossGateway,
        *,
        lease: timedelta,
        concurrency: int,
    ) -> None:
        """``concurrency``: how many payments are worked on at once, in slots."""
        self._database = database
        self._lane = lane
        self._gateway = gateway
        self._lease = lease
        self._concurrency = concurrency
        self._tasks = DetachedTasks("resolver")
        self._reserved = 0
        """Slots for retries of first calls whose outcomes are being recorded."""
        self._background: set[str] = set()
        """The payments that take a slot, by payment_id."""
        self._recording = 0
        """Those of them whose outcomes are being recorded."""
        self._held: dict[str, str] = {}
        """The holder of each payment that this replica works on, by payment_id."""

    async def close(self, limit_s: float) -> None:
        """Wait for the work in progress. What does not end is acquired by others later."""
        await self._tasks.close(limit_s)

    @property
    def slots_free(self) -> int:
        """How many more payments this replica may work on."""
        working = len(self._tasks) - min(self._recording, RECORDING_MAX)
        return self._concurrency - working - self._reserved

    # -- leases --------------------------------------------------------------------------------

    async def sweep(self) -> int:
        """Acquire due payments, as many as slots are free, and start; returns how many."""
        size = self.slots_free
        if size <= 0:
            return 0
        acquired = await in_transaction(
            self._database,
            "payment_acquisition",
            partial(store.acquire_due, holder=new_id(), lease=self._lease, size=size),
        )
        for confirmation in acquired:
            self._tasks.start(self._work_in_slot(confirmation))
        return len(acquired)

    async def renew_leases(self) -> int:
        """Renew the lease of every payment that this replica works on; returns how many."""
        if not self._held:
            return 0
        return await in_transaction(
            self._database,
            "payment_renewal",
            lambda connection: store.renew(connection, self._held, lease=self._lease),
            idempotent=True,
            # Not among the jobs, where slow sweeps would keep it out until the leases have run out.
            of_call=True,
        )

    @contextmanager
    def _holding(self, confirmation: Confirmation) -> Iterator[str]:
        holder, payment_id = confirmation.holder, confirmation.payment.payment_id
        assert holder is not None
        self._held[payment_id] = holder
        try:
            yield holder
        finally:
            # Unless the lease was lost and this replica has acquired the payment again.
            if self._held.get(payment_id) == holder:
                del self._held[payment_id]

    # -- work ----------------------------------------------------------------------------------

    async def charge(
        self, confirmation: Confirmation, claimed_s: float
    ) -> tuple[GatewayOutcome, Confirmation | None]:
        """Make the claim's first call and record its outcome.

        Returns the last outcome and the payment then; None if the claim is deleted.
        ``claimed_s``: the event loop's time before the claim, which permits a confirm for a moment.
        An unknown outcome is retried in the background if a slot is free. An account in a status
        that Tally does not serve is closed at once.
        """
        with self._holding(confirmation) as holder:
            outcome = await self._confirm(confirmation, permitted_s=claimed_s)
            # A confirmed payment is open only if it was cancelled meanwhile. That is too rare to
            # reserve a slot for every payment: the sweep gives it back.
            to_close = isinstance(outcome, Unsupported)
            retry = isinstance(outcome, Unknown | Mismatch) and self.slots_free > 0
            if retry:
                self._reserved += 1
            try:
                left = await self._record(confirmation, outcome, keep_lease=retry or to_close)
            finally:
                if retry:
                    self._reserved -= 1
        if left is None or not left.open or left.holder != holder:
            return outcome, left
        if to_close:
            return await self.work(left)
        self._tasks.start(self._work_in_slot(left, pause_s=_FIRST_RETRY_S))
        return outcome, left

    async def _work_in_slot(self, confirmation: Confirmation, pause_s: float = 0.0) -> None:
        payment_id = confirmation.payment.payment_id
        self._background.add(payment_id)
        try:
            await asyncio.sleep(pause_s)
            await self.work(confirmation)
        finally:
            self._background.discard(payment_id)

    async def work(self, confirmation: Confirmation) -> tuple[GatewayOutcome, Confirmation | None]:
        """Work on a payment that this replica holds, as far as the gateway allows.

        Returns the last outcome and the payment then; None if the claim is deleted.
        """
        with self._holding(confirmation) as holder:
            while True:
                begun = _now()
                outcome = await self._step(confirmation)
                age = timedelta(seconds=_now() - begun)
                left = await self._record(confirmation, outcome, keep_lease=True, age=age)
                if left is not None and left.refund_refused and not confirmation.refund_refused:
                    _log_refund_refused(left)
                if left is None or not left.open or left.holder != holder:
                    return outcome, left
                confirmation = left

    async def look_up(self, confirmation: Confirmation) -> GatewayOutcome:
        """Ask the gateway about any payment, without a lease; record what it did."""
        found = await counted("find", confirmation, self._gateway.find(confirmation.charge))
        await self._record(replace(confirmation, holder=new_id()), found, keep_lease=False)
        return found

    async def _step(self, confirmation: Confirmation) -> GatewayOutcome:
        """Look up an unknown outcome, close an account, or give back what was charged."""
        if confirmation.payment.state is PaymentState.CONFIRMED:
            return await self._refund(confirmation)
        if confirmation.payment.unsupported_status is not None:
            return await self._close_account(confirmation)
        found = await counted("find", confirmation, self._gateway.find(confirmation.charge))
        if not isinstance(found, NotFound) or confirmation.cancel_reason is not None:
            return found
        return await self._confirm(confirmation)

    async def _refund(self, confirmation: Confirmation) -> GatewayOutcome:
        """Give back what is left of the charge."""
        assert confirmation.cancel_reason is not None
        return await self._cancel(
            confirmation, confirmation.cancel_reason, confirmation.refund_amount
        )

    async def _close_account(self, confirmation: Confirmation) -> GatewayOutcome:
        """Cancel a payment that the customer could still pay in a way that Tally does not serve."""
        return await self._cancel(confirmation, confirmation.cancel_reason or CLOSE_REASON)

    async def _cancel(
        self, confirmation: Confirmation, reason: str, amount: Money | None = None
    ) -> GatewayOutcome:
        """Cancel at the gateway. A refusal is definite if nothing else has happened there.

        Otherwise the outcome is what has: the customer has paid meanwhile, or others have refunded,
        the whole or a part. Once it is recorded, the rest is cancelled.
        """
        cancelling = self._gateway.cancel(confirmation.refund, reason, amount)
        outcome = await counted("cancel", confirmation, cancelling)
        if not isinstance(outcome, NotCancellable):
            return outcome
        found = await counted("find", confirmation, self._gateway.find(confirmation.charge))
        return outcome if is_known(confirmation, found) else found

    async def _confirm(
        self, confirmation: Confirmation, *, permitted_s: float = -math.inf
    ) -> GatewayOutcome:
        """Send a confirm, if the payment may still be confirmed by this replica.

        ``permitted_s``: the event loop's time before its claim, which was a permission too.
        """
        assert confirmation.holder is not None
        begin = BeginConfirm(confirmation.payment.payment_id, confirmation.key, confirmation.holder)
        asked = 0
        while _now() - permitted_s > PERMISSION_S:
            if asked == PERMISSIONS_MAX:
                return NotSent("not permitted in time")
            asked += 1
            permitted_s = _now()
            try:
                permitted = await self._lane.submit(begin)
            except Overloaded:
                return Saturated()
            except Refusal as refusal:
                return NotSent(f"not permitted: {refusal.reason}")
            if permitted is None:
                return NotSent("not permitted: cancelled, or acquired by another replica")
        return await counted("confirm", confirmation, self._gateway.confirm(confirmation.charge))

    async def _record(
        self,
        confirmation: Confirmation,
        outcome: GatewayOutcome,
        *,
        keep_lease: bool,
        age: timedelta = timedelta(0),
    ) -> Confirmation | None:
        """Record an outcome. Another call would be needed to get it again, so this is retried.

        Raises the refusal of the last try. When the lease ends, any replica looks the payment up.
        """
        assert confirmation.holder is not None
        in_slot = confirmation.payment.payment_id in self._background
        command = RecordOutcome(
            confirmation.payment.payment_id,
            confirmation.key,
            outcome,
            confirmation.holder,
            timedelta(seconds=_RETRY.pause_s(confirmation.tries + 1)),
            keep_lease=keep_lease,
            age=age,
        )
        self._recording += in_slot
        try:
            return await self._submit(command)
        finally:
            self._recording -= in_slot

    async def _submit(self, command: RecordOutcome) -> Confirmation | None:
        attempt = 1
        while True:
            try:
                recorded = await self._lane.submit(command)
            except (ConflictRetriesExhausted, DatabaseUnavailable, Overloaded):
                if attempt == STORE_TRIES_MAX:
                    raise
                await asyncio.sleep(_STORE_RETRY.pause_s(attempt))
                attempt += 1
            else:
                assert recorded is None or isinstance(recorded, Confirmation)
                return recorded


def _log_refund_refused(confirmation: Confirmation) -> None:
    payment = confirmation.payment
    _log.error(
        "refund_refused",
        code=payment.refund_refusal_code,
        payment_id=payment.payment_id,
        order_id=payment.order_id,
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
