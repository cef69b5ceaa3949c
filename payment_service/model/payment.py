"""Payments and the rules of their states.

    claim ─► PENDING ─┬─► CONFIRMED ─► CANCELLED
                      ├─► DECLINED
                      ├─► UNKNOWN ─► any of these, when the gateway reports it
                      └─► (deleted: the call provably never left, the key is free)

A payment is *open* while there is work left at the gateway: its outcome is not known, or its money
has to be given back. An open payment has a ``due_time``, from which any replica may work on it.
While it has a ``holder``, due_time is the end of the holder's lease, else the time of the next try.
A replica that lost its lease may still store what it knows for certain (charged, declined, given
back), but only the holder may free the key or set the next try.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from common.errors import Refusal, RequestIdReused
from common.money import Money
from common.request_key import RequestKey
from payment_service.errors import (
    PaymentDeclined,
    PaymentInProgress,
    PaymentKeyUsed,
    PaymentOutcomeUnknown,
)
from payment_service.gateway.outcomes import (
    Cancelled,
    Charge,
    Confirmed,
    Declined,
    NotSent,
    Rejected,
)
from payment_service.model.payment_command import (
    ConfirmPayment,
    RecordOutcome,
    cancelled,
    confirm_key,
    digest_of_payment,
)

BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)


class PaymentState(enum.StrEnum):
    """The state of a payment."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    DECLINED = "DECLINED"
    UNKNOWN = "UNKNOWN"
    CANCELLED = "CANCELLED"


UNDECIDED: Final = frozenset({PaymentState.PENDING, PaymentState.UNKNOWN})
CANCELLABLE: Final = UNDECIDED | {PaymentState.CONFIRMED}
TOMBSTONE_REASON: Final = "cancelled before it was confirmed"
"""Stored as the cancel reason of a claim whose request already had a tombstone."""


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment as clients see it."""

    payment_id: str
    order_id: str
    user_id: str
    amount: Money
    payment_key: str
    state: PaymentState
    gateway: str
    gateway_transaction_id: str | None
    failure_code: str | None
    create_time: datetime
    update_time: datetime

    def declined(self) -> PaymentDeclined:
        return PaymentDeclined(payment_id=self.payment_id, failure_code=self.failure_code or "")

    def outcome_unknown(self) -> PaymentOutcomeUnknown:
        return PaymentOutcomeUnknown(payment_id=self.payment_id)

    def key_taken(self) -> Refusal:
        """The refusal of another request with this payment's key."""
        taken = PaymentInProgress if self.state in UNDECIDED else PaymentKeyUsed
        return taken(payment_key=self.payment_key)


@dataclass(slots=True)
class Confirmation:
    """A payment and the work on it, as loaded and as this batch changes it."""

    payment: Payment
    request_id: str
    cancel_reason: str | None = None
    """Why the money has to be given back; None while no cancellation was requested."""
    cancel_request_id: str | None = None
    holder: str | None = None
    due_time: datetime | None = None
    tries: int = 0
    """How often a replica acquired the payment after its first call."""
    version: int = 0
    loaded_version: int = field(init=False)
    released: bool = field(init=False, default=False)
    """The claim has to be deleted: the key is free again."""

    def __post_init__(self) -> None:
        self.loaded_version = self.version

    @classmethod
    def claim(
        cls, command: ConfirmPayment, payment_id: str, gateway: str, now: datetime, lease: timedelta
    ) -> Confirmation:
        """A new claim of the key. Its caller calls the gateway next."""
        payment = Payment(
            payment_id,
            command.order_id,
            command.user_id,
            command.amount,
            command.payment_key,
            PaymentState.PENDING,
            gateway,
            gateway_transaction_id=None,
            failure_code=None,
            create_time=now,
            update_time=now,
        )
        claim = cls(payment, command.request_id, holder=command.holder, due_time=now + lease)
        claim.version = 1
        return claim

    @property
    def key(self) -> RequestKey:
        """The key of the ConfirmPayment request."""
        return confirm_key(self.payment.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        """The digest of the ConfirmPayment request."""
        return digest_of_payment(
            self.payment.order_id, self.payment.amount, self.payment.payment_key
        )

    @property
    def new(self) -> bool:
        """Whether its row is not inserted yet."""
        return self.loaded_version == 0

    @property
    def changed(self) -> bool:
        return self.version != self.loaded_version

    @property
    def open(self) -> bool:
        """Whether there is work left at the gateway."""
        if self.payment.state in UNDECIDED:
            return not self.released
        return self.payment.state is PaymentState.CONFIRMED and self.cancel_reason is not None

    @property
    def charge(self) -> Charge:
        """What the gateway has to charge, the same in every try by every replica.

        The idempotency key has the payment's id: unique over all users, unlike a request_id.
        """
        payment = self.payment
        return Charge(
            payment.payment_key,
            payment.order_id,
            payment.amount,
            idempotency_key=f"confirm:{payment.payment_id}",
        )

    @property
    def refund(self) -> Charge:
        """The same charge, for the call that gives it back.

        Each try has its own idempotency key: under one key the gateway would repeat a refusal for
        ever. All of the money is given back or none, so a second refund finds nothing to give.
        """
        key = f"cancel:{self.payment.payment_id}:{self.tries}"
        return replace(self.charge, idempotency_key=key)

    def check_same(self, command: ConfirmPayment) -> None:
        """Raise RequestIdReused unless the command has the content of this confirmation."""
        if command.digest != self.digest:
            raise RequestIdReused(request_id=command.request_id)

    def result(self) -> Payment:
        """The payment of a finished confirmation. Raises PaymentDeclined or PaymentCancelled."""
        assert self.payment.state not in UNDECIDED
        if self.payment.state is PaymentState.DECLINED:
            raise self.payment.declined()
        if self.payment.state is PaymentState.CANCELLED or self.cancel_reason is not None:
            raise cancelled(self.key)
        return self.payment

    def record(self, command: RecordOutcome, now: datetime, lease: timedelta) -> None:
        """Apply an outcome of the gateway. A payment that is not open does not change."""
        if not self.open:
            return
        held = command.holder == self.holder
        first_call = held and self.payment.state is PaymentState.PENDING
        undecided = self.payment.state in UNDECIDED
        match command.outcome:
            case Confirmed(transaction_id) if undecided:
                self.payment = replace(self.payment, gateway_transaction_id=transaction_id)
                self._become(PaymentState.CONFIRMED, now)
            case Declined(code) if undecided:
                self.payment = replace(self.payment, failure_code=code)
                self._become(PaymentState.DECLINED, now)
            case Cancelled(transaction_id):
                kept = self.payment.gateway_transaction_id or transaction_id
                self.payment = replace(self.payment, gateway_transaction_id=kept)
                self._become(PaymentState.CANCELLED, now)
            case NotSent() | Rejected() if first_call:
                # The state is PENDING until a second replica acquires the payment: this was the
                # claim's only call. After that, one call that did nothing proves nothing.
                self.released = True
                self.version += 1
                return
            case _ if first_call and command.keep_lease:
                self._become(PaymentState.UNKNOWN, now)
            case _:
                if held:
                    self._postpone(command.pause, now)
                return
        self._hold(command.holder if held and command.keep_lease else None, now, lease)

    def acquire(self, holder: str, now: datetime, lease: timedelta) -> bool:
        """Give ``holder`` the lease of an open payment; returns whether it has it now."""
        assert self.due_time is not None
        if self.holder is not None and self.due_time > now:
            return self.holder == holder
        if self.payment.state is PaymentState.PENDING:
            # The claim's replica is gone, and may have called the gateway before.
            self._become(PaymentState.UNKNOWN, now)
        self.tries += 1
        self._hold(holder, now, lease)
        return True

    def request_cancel(
        self, reason: str, request_id: str | None, holder: str, now: datetime, lease: timedelta
    ) -> None:
        """Note for ever that the money has to be given back, and by which request.

        ``request_id`` is None if the request had a tombstone before it was claimed.
        """
        if self.cancel_reason is not None or self.payment.state not in CANCELLABLE:
            return
        self.cancel_reason, self.cancel_request_id = reason, request_id
        if self.due_time is None:
            self._hold(holder, now, lease)
        self.version += 1

    def _become(self, state: PaymentState, now: datetime) -> None:
        # The database's clock may be set back; a payment's update_time must not go back.
        update_time = max(self.payment.update_time, now)
        self.payment = replace(self.payment, state=state, update_time=update_time)
        self.version += 1

    def _hold(self, holder: str | None, now: datetime, lease: timedelta) -> None:
        self.holder = holder if self.open else None
        self.due_time = None if not self.open else now + lease if holder else now
        self.version += 1

    def _postpone(self, pause: timedelta, now: datetime) -> None:
        if self.payment.state is PaymentState.PENDING:
            self._become(PaymentState.UNKNOWN, now)
        self.holder, self.due_time = None, now + pause
        self.version += 1
