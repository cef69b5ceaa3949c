"""The writes of payments, decided batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from pydantic import TypeAdapter

from common.batching.decider import Decider, Saved
from common.batching.outcomes import RowLocked
from common.db.idempotency import REFUSED, IdempotencyRecords, IdempotencyStore
from common.db.row_locks import AlsoRead
from common.db.statements import Connection
from common.db.writes import execute_together
from common.errors import Refusal, RequestIdReused
from common.ids import new_id
from common.request_key import RequestKey, Result
from payment_service import tables
from payment_service.errors import PaymentKeyUsed, PaymentNotFound
from payment_service.locking import advisory_keys
from payment_service.model.confirmation import TOMBSTONE_REASON, Confirmation
from payment_service.model.outcome import record
from payment_service.model.payment import Payment, PaymentState
from payment_service.model.payment_command import (
    BeginConfirm,
    CancelPayment,
    Command,
    ConfirmPayment,
    RecordOutcome,
    ResolvePayment,
    cancelled,
    gateway_unavailable,
)
from payment_service.model.resolution import resolve
from payment_service.store import payment as store

BODY: Final[TypeAdapter[Payment | None]] = TypeAdapter(Payment | None)

Posted = Result[Payment | None]
"""The response of a call: the payment, or None if there was none to cancel."""

Reply = Posted | Confirmation | None
"""The response of a call; or its payment, if the payment's holder has work left at the gateway.
For a recorded outcome: the payment after it, or None if the claim is deleted. For BeginConfirm: the
payment, or None if no confirm may be sent."""


def translate(constraint: str, command: Command) -> Refusal | None:
    """The refusal for a violated constraint."""
    match constraint, command:
        case tables.KEY_ONCE, ConfirmPayment() as claim:
            return PaymentKeyUsed(payment_key=claim.payment_key)
        case tables.REQUEST_ONCE, ConfirmPayment() as claim:
            return RequestIdReused(request_id=claim.request_id)
        case tables.CANCEL_REQUEST_ONCE, CancelPayment() as cancel:
            # It was used for another confirmation before, and may have no response yet.
            return RequestIdReused(request_id=cancel.request_id)
    return None


@dataclass(frozen=True, slots=True)
class _Batch:
    payments: store.LoadedPayments
    blocked_keys: frozenset[int]
    """Advisory locks that another transaction has."""


class PaymentDecider(Decider[Command, Reply, _Batch]):
    """Decides a batch of payment commands in an open transaction."""

    def __init__(
        self,
        idempotency: IdempotencyStore,
        gateway: str,
        lease: timedelta,
        confirm_window: timedelta,
    ) -> None:
        """``gateway``: the name stored with new payments. ``lease``: how long a lease lasts.

        ``confirm_window``: how long after its last confirm a key can still be confirmed.
        """
        super().__init__(idempotency)
        self._gateway = gateway
        self._lease = lease
        self._confirm_window = confirm_window

    async def load(
        self,
        connection: Connection,
        commands: Sequence[Command],
        records: AlsoRead,
        *,
        wait_for_locks: bool,
    ) -> _Batch:
        keys = {key for command in commands for key in advisory_keys(command)}
        blocked = await store.lock_advisory(connection, keys, wait_for_locks=wait_for_locks)
        loaded = await store.load(connection, commands, wait_for_locks=wait_for_locks)
        return _Batch(loaded, blocked)

    def keys(self, command: Command) -> set[RequestKey]:
        if isinstance(command, BeginConfirm | RecordOutcome):
            return {command.confirm_key}
        return {command.key, command.confirm_key}

    def blocked(self, batch: _Batch, command: Command) -> RowLocked | None:
        for key in advisory_keys(command):
            if key in batch.blocked_keys:
                return RowLocked(key)
        blocked = batch.payments.blocked
        if isinstance(command, BeginConfirm | RecordOutcome | ResolvePayment):
            row = blocked.get(command.payment_id)
        else:
            row = blocked.get(command.confirm_key)
        if row is None and isinstance(command, ConfirmPayment):
            row = blocked.get(command.payment_key)
        return None if row is None else RowLocked(row)

    def decide(self, batch: _Batch, records: IdempotencyRecords, command: Command) -> Reply:
        match command:
            case BeginConfirm():
                return self._begin(batch.payments, records, command)
            case RecordOutcome():
                return self._record(batch.payments, records, command)
            case ConfirmPayment():
                return _replay(records, command) or self._claim(batch.payments, records, command)
            case CancelPayment():
                return _replay(records, command) or self._cancel(batch.payments, records, command)
            case ResolvePayment():
                return records.replay(command, BODY) or self._resolve(
                    batch.payments, records, command
                )

    async def save(
        self, connection: Connection, batch: _Batch, commands: Sequence[Command]
    ) -> Saved:
        # A row can only have changed if a lock was not taken. The constraint and the conditional
        # update protect against that.
        changed = [each for each in batch.payments.by_id.values() if each.changed]
        # Deletions come first: the batch may claim a released key again.
        await execute_together(connection, store.releasing(changed))
        return Saved([*store.saving(changed), *store.adding(changed)])

    def _claim(
        self,
        payments: store.LoadedPayments,
        records: IdempotencyRecords,
        command: ConfirmPayment,
    ) -> Posted | Confirmation:
        same = payments.by_request.get(command.key)
        if same is not None:
            records.replays = True
            same.check_same(command)
            if same.open:
                return replace(same)
            # Its record was cleaned up after 30 days; the payment is kept for ever.
            return Result(same.result(), replayed=True)
        other = payments.by_key.get(command.payment_key)
        if other is not None:
            raise other.payment.key_taken()
        if command.circuit_open:
            raise gateway_unavailable(command.payment_key, circuit_open=True)
        claim = Confirmation.claim(command, new_id(), self._gateway, payments.now, self._lease)
        payments.add(claim)
        return replace(claim)

    def _begin(
        self, payments: store.LoadedPayments, records: IdempotencyRecords, command: BeginConfirm
    ) -> Confirmation | None:
        confirmation = _confirmation_of(payments, records, command)
        if confirmation is None or not confirmation.begin_confirm(command.holder, payments.now):
            return None
        return replace(confirmation)

    def _record(
        self, payments: store.LoadedPayments, records: IdempotencyRecords, command: RecordOutcome
    ) -> Confirmation | None:
        confirmation = _confirmation_of(payments, records, command)
        if confirmation is None:
            return None
        record(confirmation, command, payments.now, self._lease, self._confirm_window)
        if confirmation.released:
            payments.release(confirmation)
            return None
        _answer(records, confirmation)
        # A copy: a later command of this batch may change the payment.
        return replace(confirmation)

    def _cancel(
        self, payments: store.LoadedPayments, records: IdempotencyRecords, command: CancelPayment
    ) -> Posted | Confirmation:
        before = records.is_cancelled(command.confirm_key)
        if not before:
            # In the transaction of the cancellation request, or alone: the confirmation, late or
            # repeated, is refused.
            records.cancel(command.confirm_key)
        confirmation = payments.by_request.get(command.confirm_key)
        if confirmation is None:
            # The claim that this call requested to cancel may have been deleted meanwhile.
            return _answer_cancel(records, command, None, replayed=before and not command.requested)
        confirmation.request_cancel(command.reason, command.request_id, payments.now)
        first = confirmation.cancel_request_id == command.request_id
        if first and confirmation.cancel_reason != command.reason:
            raise RequestIdReused(request_id=command.request_id)
        if not confirmation.open and not confirmation.refund_refused:
            replayed = before if confirmation.cancel_reason is None else not first
            return _answer_cancel(records, command, confirmation.payment, replayed=replayed)
        if command.record_only:
            # Not recorded: the same request_id without record_only waits for the refund.
            return Result(confirmation.payment, replayed=before)
        if confirmation.refund_refused:
            raise confirmation.payment.refund_refused()
        confirmation.acquire(command.holder, payments.now, self._lease)
        return replace(confirmation)

    def _resolve(
        self, payments: store.LoadedPayments, records: IdempotencyRecords, command: ResolvePayment
    ) -> Posted:
        confirmation = _confirmation_of(payments, records, command)
        if confirmation is None:
            raise PaymentNotFound(payment_id=command.payment_id)
        resolve(confirmation, command, payments.now)
        _answer(records, confirmation)
        return records.answer(command, confirmation.payment, BODY)


def _confirmation_of(
    payments: store.LoadedPayments,
    records: IdempotencyRecords,
    command: BeginConfirm | RecordOutcome | ResolvePayment,
) -> Confirmation | None:
    """The payment that a replica works on; None if its claim is deleted."""
    confirmation = payments.by_id.get(command.payment_id)
    if confirmation is None or confirmation.released:
        return None
    if records.is_cancelled(command.confirm_key):
        # The claim missed a tombstone, although the advisory lock should prevent that. The key of
        # the idempotency record is the last guard.
        confirmation.request_cancel(TOMBSTONE_REASON, None, payments.now)
    return confirmation


def _replay(records: IdempotencyRecords, command: ConfirmPayment | CancelPayment) -> Posted | None:
    """The recorded response, or its refusal raised; None if there is no record."""
    record = records.get(command.key)
    if record is None:
        return None
    if record.cancelled:
        raise cancelled(command.key)
    replayed = records.replay(command, BODY)
    if record.state == REFUSED:
        assert replayed is not None
        assert replayed.value is not None
        raise replayed.value.refusal()
    return replayed


def _answer(records: IdempotencyRecords, confirmation: Confirmation) -> None:
    """Record the response of a finished confirmation, once, unless it has a tombstone."""
    payment = confirmation.payment
    to_give_back = confirmation.cancel_reason is not None
    match payment.state:
        case PaymentState.CANCELLED | PaymentState.CONFIRMED if (
            payment.state is PaymentState.CANCELLED or to_give_back
        ):
            # Also if it was not a request that cancelled the payment.
            if not records.is_cancelled(confirmation.key):
                records.cancel(confirmation.key)
        case PaymentState.CONFIRMED if records.get(confirmation.key) is None:
            records.answer(confirmation, payment, BODY)
        case PaymentState.DECLINED if records.get(confirmation.key) is None:
            records.refuse(confirmation, payment, BODY)


def _answer_cancel(
    records: IdempotencyRecords, command: CancelPayment, payment: Payment | None, *, replayed: bool
) -> Posted:
    records.answer(command, payment, BODY)
    return Result(payment, replayed=replayed)
