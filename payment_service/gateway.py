"""What Tally asks of a payment gateway, and everything a gateway may answer.

The gateway is on the far side of a network, so an answer is one of three kinds, and a caller that
mixes them up charges a customer twice or not at all:

- what the gateway said of the payment: ``Confirmed``, ``Declined``, ``Cancelled``, ``NotFound``,
  ``NotCancellable``;
- this call did nothing there: ``NotSent``, ``Rejected``;
- nobody knows: ``Unknown``, ``Mismatch``.

``NotSent`` and ``Rejected`` speak of one call only. When an earlier call of the same confirmation
may have arrived, the payment stays unknown whatever happened to the later one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from common.money import Money


@dataclass(frozen=True, slots=True)
class Charge:
    """One confirmation, the same in every attempt at it, by whichever replica.

    ``idempotency_key`` (1-300 characters) must be unique over all users and payments: a gateway
    answers a key that it has seen with the first answer, even if the payment is another one. A
    request_id, unique per user only, is not enough.
    """

    payment_key: str
    order_id: str
    amount: Money
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The money was taken, exactly the amount asked for, and has not been given back."""

    transaction_id: str
    amount: Money


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The money was taken and given back, all of it."""

    transaction_id: str
    amount: Money


@dataclass(frozen=True, slots=True)
class Declined:
    """Not charged, and never will be under this key; ``code`` is the gateway's reason."""

    code: str


@dataclass(frozen=True, slots=True)
class NotFound:
    """The gateway has taken no confirmation of this key: never seen, or not confirmed yet.

    A confirmation still on its way may yet arrive; sending it again with the same idempotency
    key is the safe way on.
    """


@dataclass(frozen=True, slots=True)
class NotCancellable:
    """The gateway will not cancel this payment; ``code`` is its reason."""

    code: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """This call provably never left: no connection, or the circuit breaker is open."""

    why: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The gateway turned this call away for our own fault (credentials, rate): it did nothing.

    Never the customer's decline; an operator has to look at ``code``.
    """

    code: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """It may or may not have happened: time limit, lost reply, 5xx, or an unreadable answer."""

    why: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A well-formed answer about other money than asked for; ``fields`` differ or are missing.

    Asking again will not change it: the payment stays unknown until somebody looks.
    """

    fields: tuple[str, ...]


Unfinished = NotSent | Rejected | Unknown | Mismatch
ConfirmOutcome = Confirmed | Declined | Cancelled | Unfinished
FindOutcome = Confirmed | Declined | Cancelled | NotFound | Unfinished
CancelOutcome = Cancelled | NotCancellable | NotFound | Unfinished


class Gateway(Protocol):
    """A payment gateway. No method raises for anything the far side or the network does."""

    @property
    def name(self) -> str:
        """What is stored with each payment as its gateway."""

    async def confirm(self, charge: Charge) -> ConfirmOutcome:
        """Take the money. Safe to repeat with the same charge."""

    async def find(self, charge: Charge) -> FindOutcome:
        """Tell what became of the charge's payment key, checked against the charge."""

    async def cancel(self, charge: Charge, reason: str) -> CancelOutcome:
        """Give all of the money back. Safe to repeat with the same charge."""

    async def aclose(self) -> None:
        """Close the connections."""
