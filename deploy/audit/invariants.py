"""The invariants, in words that say what an audit has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Invariant:
    """What an audit says of one invariant."""

    holds: str
    """Also while orders and payments are on their way."""
    broken: str


INVARIANTS: Final = {
    "I1": Invariant(
        "The ledger's entries add up to the balances.",
        "The ledger's entries do not add up to the balances.",
    ),
    "I2": Invariant(
        "Each balance is the sum of its entries, which have no gap.",
        "Balances are not the sums of their entries, or entries are missing.",
    ),
    "I3": Invariant(
        "All money that was charged or captured is left, spent, on its way, given back, or stands.",
        "Money that was charged or captured is missing, or is used twice.",
    ),
    "I4": Invariant(
        "All stock is free, reserved or sold, by line, by seat, and by its journal.",
        "Stock is missing, or is reserved or sold twice.",
    ),
    "I5": Invariant(
        "No campaign issued too many coupons; each redemption has one order, or stands.",
        "Coupons were issued or redeemed that must not have been.",
    ),
    "I6": Invariant(
        "Each order moved by legal transitions and is paid to the unit; nothing is overdue.",
        "Orders or sagas moved illegally, are not paid to the unit, or are overdue.",
    ),
    "I7": Invariant(
        "Each payment agrees with the gateway: it pays one order, is on its way, is given back, or"
        " stands.",
        "Payments and what the gateway has differ, or payments are overdue.",
    ),
    "I8": Invariant(
        "Each stored answer has its effect; each cancelled request has none.",
        "Stored answers and their effects differ.",
    ),
}

WITHOUT_GATEWAY: Final = {
    "I3": "All money that was charged is left, spent, on its way, given back, or stands.",
    "I7": "Each payment is well-formed and moves; the gateway's side was left out.",
}
"""What holds if the gateway's side is left out."""
