"""A payment with the work on it: leases, cancellation, and the outcomes of the gateway.

    claim ─► PENDING ─┬─► CONFIRMED ─► CANCELLED
                      ├─► DECLINED
                      ├─► UNKNOWN ─► any of these, when the gateway reports it
                      └─► (deleted: the call provably never left, the key is free)

A payment is *open* while there is work left at the gateway: its outcome is not known, or its money
has to be given back and the gateway has not refused that. An open payment has a ``due_time``, from
which any replica may work on it. While it has a ``holder``, due_time is the end of the holder's
lease, else the time of the next try. A replica that lost its lease may still store what it knows
for certain (charged, declined, given back), but only the holder may free the key, send a confirm,
store a refused refund or set the next try.

No confirm is permitted for a payment that carries a cancellation (``cancel_reason``); one that was
permitted before may be in transit. If the gateway still does not know the payment when its key
cannot be confirmed any more, it is DECLINED with NOT_CHARGED.
Should a charge be found after all, the payment is CONFIRMED again and given back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from common.errors import RequestIdReused
from common.identity.origin import Origin
from common.money import Money
from common.request_key import RequestKey
from payment_service.gateway.outcomes import Charge
from payment_service.model.payment import (
    BEGINNING,
    CANCELLABLE,
    NOT_CHARGED,
    UNDECIDED,
    Payment,
    PaymentState,
)
from payment_service.model.payment_command import (
    ConfirmPayment,
    cancelled,
    confirm_key,
    digest_of_payment,
)

TOMBSTONE_REASON: Final = "cancelled before it was confirmed"
"""Stored as the cancel reason of a claim whose request already had a tombstone."""


CHECK_INTERVAL: Final = timedelta(days=1)
FIRST_CHECK: Final = timedelta(minutes=1)
"""How soon the gateway is asked again about a payment that was settled as not charged."""


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
    confirm_time: datetime = BEGINNING
    """When a confirm may have been sent last."""
    check_time: datetime | None = None
    """When the gateway is asked again about a settled payment; None: no more."""
    origin: Origin | None = None
    """By whose call the key was claimed; None if an earlier release stored it."""
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
        claim = cls(
            payment,
            command.request_id,
            holder=command.holder,
            due_time=now + lease,
            confirm_time=now,
            origin=command.origin,
        )
        claim.version = 1
        return claim

    # -- what it is ----------------------------------------------------------------------------

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
    def undecided(self) -> bool:
        return self.payment.state in UNDECIDED

    @property
    def open(self) -> bool:
        """Whether there is work left at the gateway."""
        if self.undecided:
            return not self.released
        to_give_back = self.payment.state is PaymentState.CONFIRMED and bool(self.cancel_reason)
        return to_give_back and not self.refund_refused

    @property
    def refund_refused(self) -> bool:
        """Whether the gateway refused the refund permanently, and nothing has settled it since."""
        return (
            self.payment.state is PaymentState.CONFIRMED
            and self.payment.refund_refusal_code is not None
        )

    @property
    def settled_as_not_charged(self) -> bool:
        """Whether it counts as never charged, although the gateway did not decline it."""
        declined = self.payment.state is PaymentState.DECLINED
        return declined and self.payment.failure_code == NOT_CHARGED

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

        Each try has its own idempotency key: under one key the gateway would repeat a temporary
        refusal for ever. A second refund of the whole rest finds nothing to give. With an amount it
        might be given twice, so there all tries have one key.
        """
        amount = self.refund_amount
        part = self.tries if amount is None else f"rest-{amount.amount_minor}"
        return replace(self.charge, idempotency_key=f"cancel:{self.payment.payment_id}:{part}")

    @property
    def refund_amount(self) -> Money | None:
        """How much to give back; None for all that is left at the gateway.

        What a person gave back by other means is still at the gateway.
        """
        payment = self.payment
        if not payment.refunded_minor:
            return None
        return Money(payment.amount.currency_code, payment.left_minor)

    def check_same(self, command: ConfirmPayment) -> None:
        """Raise RequestIdReused unless the command has the content of this confirmation."""
        if command.digest != self.digest:
            raise RequestIdReused(request_id=command.request_id)

    def result(self) -> Payment:
        """The payment of a finished confirmation; or raises its refusal.

        PaymentDeclined, PaymentMethodNotSupported or PaymentCancelled.
        """
        assert not self.undecided
        if self.payment.state is PaymentState.DECLINED:
            raise self.payment.refusal()
        if self.payment.state is PaymentState.CANCELLED or self.cancel_reason is not None:
            raise cancelled(self.key)
        return self.payment

    # -- confirms ------------------------------------------------------------------------------

    def begin_confirm(self, holder: str, now: datetime) -> bool:
        """Note that a confirm is about to be sent; returns whether it may be sent.

        It may not if the payment carries a cancellation or is settled, or without the lease.
        """
        leased = self.holder == holder and self.due_time is not None and now < self.due_time
        if not leased or not self.undecided or self.cancel_reason is not None:
            return False
        self.confirm_time = now
        self.version += 1
        return True

    # -- checks --------------------------------------------------------------------------------

    def next_check(self, now: datetime) -> datetime | None:
        """When the gateway is asked next about the payment; None if that is of no use.

        Others may refund what was charged. A payment that counts as not charged may be charged by
        a confirm in transit: it is asked about soon, and then after as long as it is settled.
        """
        if self.settled_as_not_charged:
            settled = now - self.payment.update_time
            return now + min(max(settled, FIRST_CHECK), CHECK_INTERVAL)
        charged = self.payment.state is PaymentState.CONFIRMED and not self.open
        return now + CHECK_INTERVAL if charged else None

    def check_until(self, age_max: timedelta, confirm_window: timedelta) -> datetime:
        """When the checks end: the first one after this time is the last."""
        until = self.payment.update_time + age_max
        if self.settled_as_not_charged:
            until = max(until, self.confirm_time + confirm_window)
        return until

    # -- changes of state ----------------------------------------------------------------------

    def release(self) -> None:
        """Free the key: the claim is deleted."""
        self.released = True
        self.version += 1

    def declined(self, code: str, now: datetime) -> None:
        """Note that nothing was charged, and why."""
        self.payment = replace(self.payment, failure_code=code)
        self.become(PaymentState.DECLINED, now)

    def give_back(
        self, refunded_minor: int, outside_minor: int, now: datetime, transaction_id: str = ""
    ) -> None:
        """Record how much has been given back in all, and how much of it outside Tally."""
        payment = self.payment
        self.payment = replace(
            payment,
            gateway_transaction_id=payment.gateway_transaction_id or transaction_id,
            failure_code=None,
            refunded_minor=refunded_minor,
            refunded_outside_minor=outside_minor,
        )
        whole = refunded_minor == payment.amount.amount_minor
        self.become(PaymentState.CANCELLED if whole else PaymentState.CONFIRMED, now)

    # -- outcomes of a person ------------------------------------------------------------------

    def settle_as_not_charged(self, now: datetime) -> None:
        """Decline an undecided payment, as a person states: no confirm is permitted after it."""
        self.declined(NOT_CHARGED, now)
        self.holder = self.due_time = None

    def refund_outside(self, more_minor: int, now: datetime) -> None:
        """Record that more of a charge was given back by other means."""
        payment = self.payment
        self.give_back(
            payment.refunded_minor + more_minor, payment.refunded_outside_minor + more_minor, now
        )
        if not self.open:
            self.holder = self.due_time = None

    def note_resolution(self, reason: str) -> None:
        """Keep why a person settled the payment."""
        self.payment = replace(self.payment, resolution_reason=reason)
        self.version += 1

    # -- leases and cancellation ---------------------------------------------------------------

    def acquire(self, holder: str, now: datetime, lease: timedelta) -> bool:
        """Give ``holder`` the lease of an open payment; returns whether it has it now."""
        assert self.due_time is not None
        if self.holder is not None and self.due_time > now:
            return self.holder == holder
        if self.payment.state is PaymentState.PENDING:
            # The claim's replica is gone, and may have called the gateway before.
            self.become(PaymentState.UNKNOWN, now)
        self.tries += 1
        self.hold(holder, now, lease)
        return True

    def request_cancel(self, reason: str, request_id: str | None, now: datetime) -> None:
        """Note for ever that the payment must not be confirmed any more, and by which request.

        What was charged has to be given back: any replica may begin with it now. ``request_id`` is
        None if the request had a tombstone before it was claimed.
        """
        if self.payment.state not in CANCELLABLE:
            return
        if self.cancel_reason is None:
            self.cancel(reason, request_id, now)
        elif self.payment.cancel_request_time is None:
            # An earlier release stored the cancellation without its time.
            self.payment = replace(self.payment, cancel_request_time=now)
            self.version += 1

    def cancel(self, reason: str, request_id: str | None, now: datetime) -> None:
        """Note a cancellation, in whatever state the payment is."""
        self.cancel_reason, self.cancel_request_id = reason, request_id
        self.payment = replace(self.payment, cancel_request_time=now)
        self.check_time = None
        if self.holder is None:
            self.due_time = now
        self.version += 1

    def become(self, state: PaymentState, now: datetime) -> None:
        """Change the state, and the time of the last change."""
        # The database's clock may be set back; a payment's update_time must not go back.
        update_time = max(self.payment.update_time, now)
        self.payment = replace(self.payment, state=state, update_time=update_time)
        self.check_time = self.next_check(update_time)
        self.version += 1

    def hold(self, holder: str | None, now: datetime, lease: timedelta) -> None:
        """Give the lease of an open payment to ``holder``; None: any replica may take it now."""
        self.holder = holder if self.open else None
        self.due_time = None if not self.open else now + lease if holder else now
        self.version += 1

    def postpone(self, pause: timedelta, now: datetime) -> None:
        """End the lease of an open payment, until the next try after ``pause``."""
        if not self.open:
            return
        if self.payment.state is PaymentState.PENDING:
            self.become(PaymentState.UNKNOWN, now)
        self.holder, self.due_time = None, now + pause
        self.version += 1
