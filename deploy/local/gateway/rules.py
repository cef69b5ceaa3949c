"""What a payment key's prefix makes of its confirm call.

| prefix                  | charged | the call is answered                                         |
|-------------------------|---------|--------------------------------------------------------------|
| decline_                | no      | 403 REJECT_CARD_PAYMENT; recorded as ABORTED                 |
| error_                  | no      | the key's first: 500, nothing recorded; its next:            |
|                         |         | 403 REJECT_CARD_COMPANY, recorded as ABORTED                 |
| error_after_charge_     | yes     | 500 to the call that charged; repeated, 200                  |
| timeout_after_charge_   | yes     | never to the call that charged; repeated, 200                |
| slow_                   | yes     | 200, after some seconds (3 unless told otherwise)            |
| anything else           | yes     | 200                                                          |

An ``error_`` payment is never charged, and still comes to an end: after the 500 a query says
NOT_FOUND_PAYMENT, and the confirm sent again is declined. A 500 that did nothing is not kept as
the idempotency key's answer; if it were, a client that asks again would never be done.
"""

from __future__ import annotations

import enum


class Behaviour(enum.Enum):
    """What happens to a confirm call."""

    CHARGE = ""
    DECLINE = "decline_"
    ERROR_AFTER_CHARGE = "error_after_charge_"
    ERROR = "error_"
    TIMEOUT_AFTER_CHARGE = "timeout_after_charge_"
    SLOW = "slow_"


# Longest first: error_after_charge_ begins with error_.
_BY_PREFIX = sorted(
    (behaviour for behaviour in Behaviour if behaviour.value),
    key=lambda behaviour: len(behaviour.value),
    reverse=True,
)


def behaviour_of(payment_key: str) -> Behaviour:
    """Return what the key's prefix asks for."""
    for behaviour in _BY_PREFIX:
        if payment_key.startswith(behaviour.value):
            return behaviour
    return Behaviour.CHARGE
