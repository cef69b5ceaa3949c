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

A payment that carries a cancellation (``cancel_reason``) is never confirmed again. If the gateway
still does not know it when its key cannot be confirmed any more, it is DECLINED with NOT_CHARGED.
Should a charge be found after all, the payment is CONFIRMED again and given back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from common.errors import RequestIdReused
from common.money import Money
from common.request_key import RequestKey
from payment_service.gateway.outcomes import (
    Cancelled,
    Charge,
    Confirmed,
    Declined,
    NotCancellable,
    NotFound,
    NotSent,
    PartlyCancelled,
    Rejected,
    Unsupported,
)
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
    RecordOutcome,
    cancelled,
    confirm_key,
    digest_of_payment,
)

TOMBSTONE_REASON: Final = "cancelled before it was confirmed"
"""Stored as the cancel reason of a claim whose request already had a tombstone."""
FOUND_LATER_REASON: Final = "charged after the payment was settled as not charged"
"""Stored as the cancel reason of a charge that was found too late."""


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
        """Whether the gateway refused the refund for good, and nothing has settled it since."""
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

    # -- outcomes of the gateway ---------------------------------------------------------------

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

    def record(
        self, command: RecordOutcome, now: datetime, lease: timedelta, confirm_window: timedelta
    ) -> None:
        """Apply an outcome of the gateway.

        ``confirm_window``: how long after its last confirm a key can still be confirmed. What the
        gateway did counts in every state; other outcomes change open payments only.
        """
        if self.released:
            return
        held = command.holder == self.holder
        first_call = held and self.payment.state is PaymentState.PENDING
        if first_call and isinstance(command.outcome, NotSent | Rejected):
            # The state is PENDING until a second replica acquires the payment: this was the
            # claim's only call. After that, one call that did nothing proves nothing.
            self.released = True
            self.version += 1
            return
        if not self._apply(command, now, confirm_window, held=held):
            if not held:
                return
            if not (first_call and command.keep_lease):
                self._postpone(command.pause, now)
                return
            self._become(PaymentState.UNKNOWN, now)
        self._hold(command.holder if held and command.keep_lease else None, now, lease)

    def _apply(
        self, command: RecordOutcome, now: datetime, confirm_window: timedelta, *, held: bool
    ) -> bool:
        """Change the payment to what the gateway reported; returns whether that changed it."""
        match command.outcome:
            case Confirmed(transaction_id) if self.undecided or self.settled_as_not_charged:
                self._charged(transaction_id, now)
            case Cancelled() | PartlyCancelled() as found if self._is_news(found):
                self._refunded(found, now)
            case Declined(code) if self.undecided:
                self._declined(self.payment.unsupported_status or code, now)
            case NotFound() if self._never_charged(now - command.age - confirm_window):
                self._declined(NOT_CHARGED, now)
            case NotCancellable(code) if held and not self.undecided:
                self.payment = replace(self.payment, refund_refusal_code=code)
                self._become(self.payment.state, now)
            case Unsupported(status) if held and self.undecided:
                self.payment = replace(self.payment, unsupported_status=status)
                self._become(PaymentState.UNKNOWN, now)
            case _:
                return False
        return True

    def _charged(self, transaction_id: str, now: datetime) -> None:
        if self.settled_as_not_charged:
            self._cancel(FOUND_LATER_REASON, None, now)
        self.payment = replace(
            self.payment, gateway_transaction_id=transaction_id, failure_code=None
        )
        self._become(PaymentState.CONFIRMED, now)

    def _declined(self, code: str, now: datetime) -> None:
        self.payment = replace(self.payment, failure_code=code)
        self._become(PaymentState.DECLINED, now)

    def _never_charged(self, asked_before: datetime) -> bool:
        """Whether a look-up without a result proves it: no confirm can arrive any more."""
        cancelled = self.undecided and self.cancel_reason is not None
        return cancelled and self.confirm_time <= asked_before

    def _is_news(self, found: Cancelled | PartlyCancelled) -> bool:
        """Whether more was given back than is recorded, of a charge that there was."""
        if self.undecided or self.settled_as_not_charged:
            return True
        confirmed = self.payment.state is PaymentState.CONFIRMED
        return confirmed and self._given_back(found)[0] > self.payment.refunded_minor

    def _refunded(self, found: Cancelled | PartlyCancelled, now: datetime) -> None:
        if self.settled_as_not_charged and isinstance(found, PartlyCancelled):
            self._cancel(FOUND_LATER_REASON, None, now)
        self._give_back(*self._given_back(found), now, found.transaction_id)

    def _give_back(
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
        self._become(PaymentState.CANCELLED if whole else PaymentState.CONFIRMED, now)

    def _given_back(self, found: Cancelled | PartlyCancelled) -> tuple[int, int]:
        """What the gateway reports as given back, in all and outside Tally, in minor units."""
        amount_minor = self.payment.amount.amount_minor
        whole = isinstance(found, Cancelled)
        at_gateway = amount_minor if isinstance(found, Cancelled) else found.refunded_minor
        own = self._own_part(found, at_gateway)
        # A person may have recorded a refund before the gateway reports it: it is counted once.
        outside = max(self.payment.refunded_outside_minor, at_gateway - own)
        refunded = amount_minor if whole else min(amount_minor, own + outside)
        return refunded, min(outside, refunded)

    def _own_part(self, found: Cancelled | PartlyCancelled, at_gateway: int) -> int:
        """How much of it Tally gave back: the parts that have this cancellation's reason."""
        reason = self.cancel_reason
        if reason is None or self.payment.state is not PaymentState.CONFIRMED:
            return 0
        if not found.refunds:
            return at_gateway
        # The gateway cuts long reasons.
        own = [one for one in found.refunds if one.reason and reason.startswith(one.reason)]
        return sum(one.amount_minor for one in own)

    # -- outcomes of a person ------------------------------------------------------------------

    def settle_as_not_charged(self, now: datetime) -> None:
        """Decline an undecided payment on a person's word: it is never confirmed after it."""
        self._declined(NOT_CHARGED, now)
        self.holder = self.due_time = None

    def refund_outside(self, more_minor: int, now: datetime) -> None:
        """Record that more of a charge was given back by other means."""
        payment = self.payment
        self._give_back(
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
            self._become(PaymentState.UNKNOWN, now)
        self.tries += 1
        self._hold(holder, now, lease)
        return True

    def request_cancel(self, reason: str, request_id: str | None, now: datetime) -> None:
        """Note for ever that the payment must not be confirmed any more, and by which request.

        What was charged has to be given back: any replica may begin with it now. ``request_id`` is
        None if the request had a tombstone before it was claimed.
        """
        if self.payment.state not in CANCELLABLE:
            return
        if self.cancel_reason is None:
            self._cancel(reason, request_id, now)
        elif self.payment.cancel_request_time is None:
            # An earlier release stored the cancellation without its time.
            self.payment = replace(self.payment, cancel_request_time=now)
            self.version += 1

    def _cancel(self, reason: str, request_id: str | None, now: datetime) -> None:
        self.cancel_reason, self.cancel_request_id = reason, request_id
        self.payment = replace(self.payment, cancel_request_time=now)
        if self.holder is None:
            self.due_time = now
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
        if not self.open:
            return
        if self.payment.state is PaymentState.PENDING:
            self._become(PaymentState.UNKNOWN, now)
        self.holder, self.due_time = None, now + pause
        self.version += 1
