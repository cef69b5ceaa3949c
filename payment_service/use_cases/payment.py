"""The calls, from the claim over the gateway to the response, and the reads.

The work that a call starts at the gateway is detached from it. A caller that goes away or runs out
of time stops nothing, and gets the outcome by the same request_id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from common.batching.lane import Lane
from common.batching.loader import BatchLoader, load_by_id
from common.batching.outcomes import Limits
from common.db.database import Database
from common.db.idempotency import IdempotencyRecords, IdempotencyStore
from common.db.repeat import read
from common.db.statements import Connection
from common.errors import Overloaded, Refusal, RequestInProgress
from common.locking.locks import NoLocks
from common.locking.marks import InProgressMarks
from common.paging import Found, Page, TimePosition
from common.request_key import RequestKey, Result
from common.tasks import DetachedTasks
from payment_service.errors import GatewayUnavailable, PaymentInProgress, PaymentNotFound
from payment_service.gateway.outcomes import GatewayOutcome, NotSent, Rejected, Saturated
from payment_service.gateway.toss import TossGateway
from payment_service.locking import BATCH_MAX, STRATEGIES
from payment_service.model.confirmation import Confirmation
from payment_service.model.payment import Payment, PaymentState
from payment_service.model.payment_command import (
    CancelPayment,
    Command,
    ConfirmPayment,
    ResolvePayment,
    gateway_unavailable,
)
from payment_service.model.resolution import check_amount
from payment_service.store import reads as store
from payment_service.use_cases.decider import PaymentDecider, Posted, Reply, translate
from payment_service.use_cases.joined import JoinedCalls, Outcome, now, wait_until
from payment_service.use_cases.resolver import Resolver


class Payments:
    """The payments of all users, as one replica writes and reads them."""

    def __init__(
        self,
        database: Database,
        gateway: TossGateway,
        marks: InProgressMarks,
        idempotency: IdempotencyStore,
        *,
        lease_s: float,
        confirm_window_s: float,
        resolve_concurrency: int,
    ) -> None:
        lease = timedelta(seconds=lease_s)
        confirm_window = timedelta(seconds=confirm_window_s)
        self._database = database
        self._found = BatchLoader("payment", database, store.find_payments)
        self._gateway = gateway
        self._marks = marks
        self._idempotency = idempotency
        self.lane: Lane[Command, Reply] = Lane(
            "payment",
            database,
            PaymentDecider(idempotency, gateway.name, lease, confirm_window),
            # The first line is a mark, not a lock.
            NoLocks(),
            STRATEGIES,
            translate=translate,
            limits=Limits(batch_max=BATCH_MAX),
        )
        self.resolver = Resolver(
            database, self.lane, gateway, lease=lease, concurrency=resolve_concurrency
        )
        self._calls = DetachedTasks("payments")
        self._joined = JoinedCalls(self._found, self._calls)

    async def close(self, grace_s: float) -> None:
        """Wait for calls and work at the gateway, ``grace_s`` in all, then for lane and reads."""
        until = now() + grace_s
        await self._calls.close(grace_s)
        await self.resolver.close(max(0.0, until - now()))
        await self.lane.close()
        await self._found.close()

    # -- confirm -------------------------------------------------------------------------------

    async def confirm(self, command: ConfirmPayment) -> Posted:
        """Charge the key, or replay the outcome of this request.

        Raises PaymentDeclined, PaymentCancelled, PaymentInProgress, PaymentKeyUsed,
        GatewayUnavailable, Overloaded, PaymentOutcomeUnknown, RequestInProgress, RequestIdReused,
        or what the lane raises.
        """
        until = wait_until()
        same = (command.key, command.digest, False)
        work = partial(self._confirm, command)
        while True:
            outcome = await self._joined.outcome(same, work, until)
            if isinstance(outcome, Result):
                return outcome
            last = await self._joined.watch(same, outcome, until)
            if last is None:
                continue
            if last.payment.state is PaymentState.UNKNOWN:
                raise last.payment.outcome_unknown()
            raise RequestInProgress(request_id=last.request_id)

    async def _confirm(self, command: ConfirmPayment) -> Outcome:
        """Claim the key and charge it, unless another attempt at this request has the lease."""
        mark = STRATEGIES[ConfirmPayment].mark_of(command)
        assert mark is not None
        if await self._marks.begin(mark, command.holder) is not None:
            await self._refuse_marked(command)
        claimed_s = now()
        command = replace(command, circuit_open=self._gateway.refuses_confirms)
        try:
            claimed = await self._decide(command)
        except GatewayUnavailable:
            await self._marks.clear(mark, command.holder)
            raise
        if isinstance(claimed, Result) or claimed.holder != command.holder:
            return claimed
        try:
            outcome, confirmation = await self.resolver.charge(claimed, claimed_s)
        except Refusal:
            # It may be charged and the database unavailable: this is not GATEWAY_UNAVAILABLE.
            raise claimed.payment.outcome_unknown() from None
        if confirmation is None:
            await self._marks.clear(mark, command.holder)
            raise await self._not_sent(command, outcome)
        if confirmation.payment.state is PaymentState.UNKNOWN:
            raise confirmation.payment.outcome_unknown()
        await self._marks.done(mark, confirmation.payment.payment_id)
        return Result(confirmation.result())

    async def _not_sent(self, command: ConfirmPayment, outcome: GatewayOutcome) -> Refusal:
        """The refusal of a request whose claim is deleted, since its confirm was not sent."""
        records = await self._records(command.key)
        if records.is_cancelled(command.key):
            # The lane raises the refusal, when the tombstone is durable.
            await self._decide(command)
        if isinstance(outcome, Saturated):
            return Overloaded(payment_key=command.payment_key)
        circuit_open = isinstance(outcome, NotSent) and outcome.circuit_open
        return gateway_unavailable(command.payment_key, circuit_open=circuit_open)

    async def _refuse_marked(self, command: ConfirmPayment) -> None:
        """Raise the refusal of a marked key that another request has, read without a transaction.

        The mark itself decides nothing. A request that has a record or a payment is replayed by the
        claim, whose COMMIT waits until that is durable.
        """

        async def claims(
            connection: Connection,
        ) -> tuple[bool, Confirmation | None, Confirmation | None]:
            records = await self._idempotency.load(connection, [command.key])
            answered = records.get(command.key) is not None
            return answered, *await store.read_claims(connection, command)

        answered, same, other = await read(self._database, claims)
        if not answered and same is None and other is not None:
            raise other.payment.key_taken()

    async def _records(self, key: RequestKey) -> IdempotencyRecords:
        return await read(
            self._database, lambda connection: self._idempotency.load(connection, [key])
        )

    async def _decide(self, command: ConfirmPayment | CancelPayment) -> Outcome:
        reply = await self.lane.submit(command)
        assert reply is not None
        return reply

    # -- cancel --------------------------------------------------------------------------------

    async def cancel(self, command: CancelPayment) -> Posted:
        """Undo a confirmation, or prevent it for ever; or replay that.

        With ``record_only``, the response is due when the cancellation is stored; the sweep of any
        replica carries it out. Raises PaymentInProgress, PaymentOutcomeUnknown, GatewayUnavailable,
        RefundRefused, Overloaded, RequestInProgress, RequestIdReused, or what the lane raises. The
        cancellation is stored before any of the first four, and before an Overloaded for want of a
        slot at the gateway. What the lane raises comes before that or after it.
        """
        until = wait_until()
        same = (command.key, command.digest, command.record_only)
        while True:
            work = partial(self._cancel, command)
            outcome = await self._joined.outcome(same, work, until)
            if isinstance(outcome, Result):
                return outcome
            command = _requested(command, outcome)
            last = await self._joined.watch(same, outcome, until)
            if last is None:
                continue
            if last.payment.state is PaymentState.PENDING:
                raise PaymentInProgress(payment_key=last.payment.payment_key)
            raise last.payment.outcome_unknown()

    async def _cancel(self, command: CancelPayment) -> Outcome:
        """Store the cancellation request and carry it out, unless another call has the lease."""
        stored = await self._decide(command)
        if isinstance(stored, Result) or stored.holder != command.holder:
            return stored
        outcome, left = await self.resolver.work(stored)
        if left is not None and left.open and left.holder is None:
            # Postponed: the sweep tries again, and so does a repetition of the call.
            if isinstance(outcome, Saturated):
                raise Overloaded(payment_id=left.payment.payment_id)
            if isinstance(outcome, NotSent | Rejected):
                raise GatewayUnavailable(payment_id=left.payment.payment_id)
            raise left.payment.outcome_unknown()
        return await self._decide(_requested(command, stored))

    # -- resolve -------------------------------------------------------------------------------

    async def resolve(self, command: ResolvePayment) -> Posted:
        """Settle a payment on a person's statement, after the gateway was asked; or replay that.

        Raises PaymentNotFound, PaymentOutcomeDiffers, PaymentOutcomeUnknown, PaymentInProgress,
        RequestIdReused, InvalidField or CurrencyMismatch for the amount, or what the lane raises.
        """
        record = (await self._records(command.key)).get(command.key)
        if record is None:
            command = await self._looked_up(command)
        else:
            # The lane replays it: its COMMIT waits until the record is durable.
            record.check_same(command)
        reply = await self.lane.submit(command)
        assert isinstance(reply, Result)
        return reply

    async def _looked_up(self, command: ResolvePayment) -> ResolvePayment:
        """The command with what the gateway says; the payment's row decides with it."""
        check_amount(command)
        seen = await load_by_id(self._found, command.payment_id)
        if seen is None:
            raise PaymentNotFound(payment_id=command.payment_id)
        return replace(
            command,
            confirm_key=seen.key,
            found=await self.resolver.look_up(seen),
            refunded_before_minor=seen.payment.refunded_minor,
        )

    # -- reads ---------------------------------------------------------------------------------

    async def get_payment(self, payment_id: str, user_id: str) -> Payment:
        """The payment as last committed. Raises PaymentNotFound."""
        found = await load_by_id(self._found, payment_id)
        if found is None or found.payment.user_id != user_id:
            raise PaymentNotFound(user_id=user_id, payment_id=payment_id)
        return found.payment

    async def get_confirmations(self, request_ids: Sequence[str]) -> list[Payment | None]:
        """The payment of each confirmation as last committed, in the order of ``request_ids``."""
        found = await read(
            self._database,
            lambda connection: store.read_confirmations(connection, set(request_ids)),
        )
        return [found.get(request_id) for request_id in request_ids]

    async def list_payments(
        self, user_id: str | None, order_id: str | None, payment_key: str | None, page: Page
    ) -> Found[Payment]:
        """A page of a user's payments, newest first, or the one of a key; one of them is given."""
        found = await read(
            self._database,
            lambda connection: store.read_payments(
                connection, user_id, order_id, payment_key, page
            ),
        )
        return Found(page, found, lambda each: TimePosition(each.create_time, each.payment_id).key)


def _requested(command: CancelPayment, seen: Confirmation) -> CancelPayment:
    """The command, noting whether the stored cancellation request is its own."""
    return replace(command, requested=seen.cancel_request_id == command.request_id)
