"""What a payment gateway is asked to charge, and every outcome that a call can have.

The gateway is at the other end of a network, so there are three kinds of outcomes. A caller that
confuses them charges a customer twice or not at all:

- the gateway reported the payment's state: ``Confirmed``, ``Declined``, ``Cancelled``,
  ``PartlyCancelled``, ``Unsupported``, ``NotFound``, ``NotCancellable``;
- this call changed nothing there: ``NotSent``, ``Saturated``, ``Rejected``;
- the state is not known: ``Unknown``, ``Mismatch``.

The second kind is about one call only. If an earlier call of the same confirmation
may have arrived, the payment's state stays unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from common.money import Money


@dataclass(frozen=True, slots=True)
class Charge:
    """One confirmation, the same in every attempt at it, by whichever replica.

    ``idempotency_key`` (1-300 characters) must be unique over all users and payments: a gateway
    returns the first response for a key that it has seen, even if the payment is another one. A
    request_id is not enough, since it is unique per user only.
    """

    payment_key: str
    order_id: str
    amount: Money
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Refund:
    """A part of a charge that was given back, with the reason that the gateway has for it."""

    amount_minor: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Outcome:
    http_status: int | None = field(default=None, kw_only=True, compare=False, repr=False)
    """Of the response, for the log; None without a response."""


@dataclass(frozen=True, slots=True)
class Confirmed(_Outcome):
    """The money was taken, exactly the requested amount, and has not been given back."""

    transaction_id: str
    amount: Money


@dataclass(frozen=True, slots=True)
class Cancelled(_Outcome):
    """The money was taken and given back, all of it."""

    transaction_id: str
    amount: Money
    refunds: tuple[Refund, ...] = field(default=(), repr=False)
    """Its parts; empty if the gateway did not list them. Not for the log: it has the gateway's
    texts."""


@dataclass(frozen=True, slots=True)
class PartlyCancelled(_Outcome):
    """The money was taken, and ``refunded_minor`` of it given back: more than 0, less than all."""

    transaction_id: str
    amount: Money
    refunded_minor: int
    refunds: tuple[Refund, ...] = field(default=(), repr=False)
    """Its parts; empty if the gateway did not list them. Not for the log: it has the gateway's
    texts."""


@dataclass(frozen=True, slots=True)
class Unsupported(_Outcome):
    """Not charged yet, in a status that Tally does not serve: the customer may still pay.

    An example is WAITING_FOR_DEPOSIT, a virtual account. The account has to be closed by a cancel.
    """

    status: str


@dataclass(frozen=True, slots=True)
class Declined(_Outcome):
    """Not charged, and never will be under this key; ``code`` is the gateway's reason."""

    code: str


@dataclass(frozen=True, slots=True)
class NotFound(_Outcome):
    """The gateway has no confirmation of this key: it never saw the key, or did not confirm it.

    A confirmation in transit may still arrive. It is safe to send it again with the same
    idempotency key.
    """


@dataclass(frozen=True, slots=True)
class NotCancellable(_Outcome):
    """The gateway will not cancel this payment; ``code`` is its reason."""

    code: str


@dataclass(frozen=True, slots=True)
class NotSent(_Outcome):
    """This call provably did not leave: no connection, or the circuit breaker is open."""

    reason: str
    circuit_open: bool = False
    """Whether calls are known to fail for some seconds."""


@dataclass(frozen=True, slots=True)
class Saturated(_Outcome):
    """This call did not leave: all slots of this replica for such calls were taken.

    It says nothing about the gateway.
    """


@dataclass(frozen=True, slots=True)
class Rejected(_Outcome):
    """The gateway rejected this call for Tally's own fault (credentials, rate) and did nothing.

    Never the customer's decline; an operator has to check ``code``.
    """

    code: str


@dataclass(frozen=True, slots=True)
class Unknown(_Outcome):
    """It may or may not have happened: time limit, lost or unreadable response, or a 5xx."""

    reason: str


@dataclass(frozen=True, slots=True)
class Mismatch(_Outcome):
    """A well-formed response about other money than requested; ``fields`` differ or are missing.

    Another call will not change it: the payment's state stays unknown until an operator looks.
    """

    fields: tuple[str, ...]


Untouched = NotSent | Saturated | Rejected
Inconclusive = Untouched | Unknown | Mismatch
ConfirmOutcome = Confirmed | Declined | Cancelled | PartlyCancelled | Unsupported | Inconclusive
FindOutcome = ConfirmOutcome | NotFound
CancelOutcome = Cancelled | Declined | NotCancellable | NotFound | Inconclusive
GatewayOutcome = ConfirmOutcome | FindOutcome | CancelOutcome
