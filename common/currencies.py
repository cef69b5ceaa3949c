"""The currencies in which something can be opened: the published list of ISO 4217.

The list is that of the package ``iso4217``, which a new release of Tally updates. Only what is new
is checked: what was opened in a currency that has been withdrawn since can still be used.
"""

from __future__ import annotations

from typing import Final

from iso4217 import Currency

from common.errors import InvalidField

LISTED: Final = frozenset(each.code for each in Currency if each.exponent is not None)
"""The codes that have minor units, in which Tally counts: neither gold (XAU), drawing rights (XDR),
"no currency" (XXX) nor the code for tests (XTS). Codes of funds (CHE, CLF) have them."""


def is_listed(currency_code: str) -> bool:
    """Whether something can be opened in the currency."""
    return currency_code in LISTED


def require_listed(currency_code: str, field: str) -> None:
    """Raise InvalidField for ``field`` unless the currency is listed."""
    if not is_listed(currency_code):
        raise InvalidField(field, "must be a current code of ISO 4217 that has minor units")
