"""Money: an ISO-4217 code and a whole number of minor units.

Never a float: 0.1 + 0.2 is not 0.3. Never 32 bits: they wrap at about 21 million.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from common.errors import CurrencyMismatch

AMOUNT_MAX: Final = 10**15
"""Largest amount in a request, in minor units."""

BALANCE_MAX: Final = 10**18
"""Largest balance after a charge, in minor units; still a tenth of what 64 bits hold."""

INT64_MAX: Final = 2**63 - 1
"""Largest number that a column or a field of a message holds."""


@dataclass(frozen=True, slots=True)
class Money:
    """An amount of one currency, in its minor units (cents, won); may be negative in a ledger."""

    currency_code: str
    amount_minor: int

    def __add__(self, other: Money) -> Money:
        return Money(self._same(other), self.amount_minor + other.amount_minor)

    def __sub__(self, other: Money) -> Money:
        return Money(self._same(other), self.amount_minor - other.amount_minor)

    def _same(self, other: Money) -> str:
        if self.currency_code != other.currency_code:
            raise CurrencyMismatch(expected=self.currency_code, got=other.currency_code)
        return self.currency_code
