"""Payments and the rules of their states. Pure: no I/O, no clock, nothing asynchronous.

    claim ─► PENDING ─┬─► CONFIRMED ─► CANCELLED
                      ├─► DECLINED
                      ├─► UNKNOWN ─► any of these, when the gateway tells
                      └─► (gone: the call provably never left, the key is free)

A payment is *open* while something is left to do at the gateway: its outcome is not known, or its
money is to be given back. An open one has a ``due_time``, from which anybody may take it up. While
it has a ``holder`` that is the end of a lease, else the next try's time. The holder fences: what a
replica that lost its lease knows for sure (charged, declined, given back) counts all the same, but
only the holder may free the key or set the next try.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from common.errors import RequestIdReused
from common.money import Money
from common.request_key import RequestKey, digest_of
from payment_service.errors import PaymentCancelled, PaymentDeclined
from payment_service.gateway import (
    Cancelled,
    CancelOutcome,
    Charge,
    Confirmed,
    ConfirmOutcome,
    Declined,
    FindOutcome,
    NotSent,
    Rejected,
)

BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
Outcome = ConfirmOutcome | FindOutcome | CancelOutcome


class State(enum.StrEnum):
    """Where a payment stands."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    DECLINED = "DECLINED"
    UNKNOWN = "UNKNOWN"
    CANCELLED = "CANCELLED"


UNDECIDED: Final = frozenset({State.PENDING, State.UNKNOWN})
CANCELLABLE: Final = UNDECIDED | {State.CONFIRMED}
PLANTED: Final = "cancelled before it was confirmed"


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment as clients see it."""

    payment_id: str
    order_id: str
    user_id: str
    amount: Money
    payment_key: str
    state: State
    gateway: str
    gateway_transaction_id: str | None
    failure_code: str | None
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class ConfirmPayment:
    """Claim the payment_key for this request, to charge it."""

    order_id: str
    user_id: str
    amount: Money
    payment_key: str
    request_id: str
    holder: str
    """Who carries this very call out; no part of what was asked for."""

    @property
    def key(self) -> RequestKey:
        return confirm_key(self.user_id, self.request_id)

    @property
    def digest(self) -> bytes:
        return _content(self.order_id, self.amount, self.payment_key)


@dataclass(frozen=True, slots=True)
class CancelPayment:
    """Undo one confirmation, or keep it from ever happening."""

    confirm_request_id: str
    user_id: str
    reason: str
    request_id: str
    holder: str
    """Who carries this very call out; no part of what was asked for."""
    wished: bool = False
    """Whether this very call was the first to store the wish; no part of what was asked for."""

    @property
    def key(self) -> RequestKey:
        return RequestKey("CancelPayment", self.user_id, self.request_id)

    @property
    def confirm_key(self) -> RequestKey:
        return confirm_key(self.user_id, self.confirm_request_id)

    @property
    def digest(self) -> bytes:
        return digest_of(self.confirm_request_id, self.reason)


@dataclass(frozen=True, slots=True)
class Settle:
    """Store what the gateway was heard to say of a payment."""

    payment_id: str
    user_id: str
    request_id: str
    """The confirmation's."""
    outcome: Outcome
    holder: str
    pause: timedelta
    """Until the next try, if this one did not finish."""
    go_on: bool = False
    """Whether the holder itself tries on at once, and so keeps the payment."""

    @property
    def confirm_key(self) -> RequestKey:
        return confirm_key(self.user_id, self.request_id)


Command = ConfirmPayment | CancelPayment | Settle


def confirm_key(user_id: str, request_id: str) -> RequestKey:
    """Under which a confirmation is answered, or cancelled."""
    return RequestKey("ConfirmPayment", user_id, request_id)


def _content(order_id: str, amount: Money, payment_key: str) -> bytes:
    return digest_of(order_id, amount.currency_code, amount.amount_minor, payment_key)


@dataclass(slots=True)
class Confirmation:
    """A payment and the work on it, as loaded and as this batch changes it."""

    payment: Payment
    request_id: str
    cancel_reason: str | None = None
    """Why the money is to be given back; None while nobody asked."""
    cancel_request_id: str | None = None
    holder: str | None = None
    due_time: datetime | None = None
    tries: int = 0
    """How often the payment was taken up after its first call."""
    version: int = 0
    loaded_version: int = field(init=False)
    released: bool = field(init=False, default=False)
    """The claim is to be removed: the key is free again."""

    def __post_init__(self) -> None:
        self.loaded_version = self.version

    @classmethod
    def claim(
        cls, command: ConfirmPayment, payment_id: str, gateway: str, now: datetime, lease: timedelta
    ) -> Confirmation:
        """The key claimed; its caller goes to the gateway next."""
        payment = Payment(
            payment_id,
            command.order_id,
            command.user_id,
            command.amount,
            command.payment_key,
            State.PENDING,
            gateway,
            None,
            None,
            now,
            now,
        )
        made = cls(
            payment, command.request_id, holder=command.holder, due_time=now + lease, version=1
        )
        made.loaded_version = 0
        return made

    @property
    def new(self) -> bool:
        """Whether its row is still to be inserted."""
        return self.loaded_version == 0

    @property
    def digest(self) -> bytes:
        """What the confirmation asked for."""
        return _content(self.payment.order_id, self.payment.amount, self.payment.payment_key)

    @property
    def open(self) -> bool:
        """Whether something is left to do at the gateway."""
        if self.payment.state in UNDECIDED:
            return not self.released
        return self.payment.state is State.CONFIRMED and self.cancel_reason is not None

    @property
    def changed(self) -> bool:
        return self.version != self.loaded_version

    @property
    def charge(self) -> Charge:
        """What the gateway is asked for, the same in every try by every replica.

        The idempotency key is the payment's id: unique over all users, unlike a request_id.
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

        Its key is the try's own, since a refusal kept under one key for all would be repeated for
        ever. All is given back or nothing, so that a second one finds nothing left to give.
        """
        key = f"cancel:{self.payment.payment_id}:{self.tries}"
        return replace(self.charge, idempotency_key=key)

    def check_same(self, command: ConfirmPayment) -> None:
        """Raise RequestIdReused unless the command asks for this very payment."""
        if command.digest != self.digest:
            raise RequestIdReused(request_id=command.request_id)

    def told(self) -> Payment:
        """The payment of a finished confirmation.

        Raises PaymentDeclined or PaymentCancelled where that is what came of it.
        """
        assert self.payment.state not in UNDECIDED
        if self.payment.state is State.DECLINED:
            raise declined(self.payment)
        if self.payment.state is State.CANCELLED or self.cancel_reason is not None:
            raise cancelled(self.payment.user_id, self.request_id)
        return self.payment

    def settle(self, command: Settle, now: datetime, lease: timedelta) -> None:
        """Take in what the gateway said. A payment that is done with stays as it is."""
        if not self.open:
            return
        mine = command.holder == self.holder
        undecided = self.payment.state in UNDECIDED
        match command.outcome:
            case Confirmed(transaction_id) if undecided:
                self._become(State.CONFIRMED, now, gateway_transaction_id=transaction_id)
            case Declined(code) if undecided:
                self._become(State.DECLINED, now, failure_code=code)
            case Cancelled(transaction_id):
                kept = self.payment.gateway_transaction_id or transaction_id
                self._become(State.CANCELLED, now, gateway_transaction_id=kept)
            case NotSent() | Rejected() if mine and self.payment.state is State.PENDING:
                # PENDING and ours: this was the claim's one and only call. Once anybody else has
                # taken it up the state is UNKNOWN, and one call that did nothing proves nothing.
                self.released = True
                self.version += 1
                return
            case _ if mine and self.payment.state is State.PENDING and command.go_on:
                self._become(State.UNKNOWN, now)
            case _:
                if mine:
                    self._put_off(command.pause, now)
                return
        self._hold(command.holder if mine and command.go_on else None, now, lease)

    def take(self, holder: str, now: datetime, lease: timedelta) -> bool:
        """Take an open payment up, unless somebody is at it; returns whether it is ours now."""
        assert self.due_time is not None
        if self.holder is not None and self.due_time > now:
            return self.holder == holder
        if self.payment.state is State.PENDING:
            # Its claimer is gone, and may have called the gateway before.
            self._become(State.UNKNOWN, now)
        self.tries += 1
        self._hold(holder, now, lease)
        return True

    def ask_cancel(
        self, reason: str, request_id: str | None, holder: str, now: datetime, lease: timedelta
    ) -> None:
        """Note that the money is to be given back, for good, and by which request.

        None stands for a cancellation that had come before the claim.
        """
        if self.cancel_reason is not None or self.payment.state not in CANCELLABLE:
            return
        self.cancel_reason, self.cancel_request_id = reason, request_id
        if self.due_time is None:
            self._hold(holder, now, lease)
        self.version += 1

    def _become(self, state: State, now: datetime, **changes: Any) -> None:
        # The database's clock may be set back; a payment's history is not.
        update_time = max(self.payment.update_time, now)
        self.payment = replace(self.payment, state=state, update_time=update_time, **changes)
        self.version += 1

    def _hold(self, holder: str | None, now: datetime, lease: timedelta) -> None:
        self.holder = holder if self.open else None
        self.due_time = None if not self.open else now + lease if holder else now
        self.version += 1

    def _put_off(self, pause: timedelta, now: datetime) -> None:
        if self.payment.state is State.PENDING:
            self._become(State.UNKNOWN, now)
        self.holder, self.due_time = None, now + pause
        self.version += 1


def declined(payment: Payment) -> PaymentDeclined:
    return PaymentDeclined(payment_id=payment.payment_id, failure_code=payment.failure_code or "")


def cancelled(user_id: str, request_id: str) -> PaymentCancelled:
    return PaymentCancelled(user_id=user_id, request_id=request_id)
