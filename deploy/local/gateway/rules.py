"""What the prefix of a payment key does to its confirm calls.

| prefix                  | charged | response                                                     |
|-------------------------|---------|--------------------------------------------------------------|
| decline_                | no      | 403 REJECT_CARD_PAYMENT; recorded as ABORTED                 |
| error_                  | no      | first call of the key: 500, nothing recorded; second:        |
|                         |         | 403 REJECT_CARD_COMPANY, recorded as ABORTED                 |
| error_once_             | yes     | first call of the key: 500, nothing recorded; second: 200    |
| error_after_charge_     | yes     | 500 to the call that charged; repeated, 200                  |
| timeout_after_charge_   | yes     | none to the call that charged; repeated, 200                 |
| slow_                   | yes     | 200, after some seconds (default 3)                          |
| deposit_                | no      | 200, recorded as WAITING_FOR_DEPOSIT: a virtual account;     |
|                         |         | charged when the customer deposits (see ``app``); a cancel   |
|                         |         | before closes it, after the deposit: as ``no_refund_``       |
| no_refund_              | yes     | 200; its cancel calls: 403 NOT_CANCELABLE_PAYMENT            |
| anything else           | yes     | 200                                                          |

An ``error_`` payment is never charged, and still reaches an end: after the 500 a query returns
NOT_FOUND_PAYMENT, and a repeated confirm is declined. A 500 without an effect is not stored for its
idempotency key: otherwise a client that repeats the call would never reach the end.
"""

from __future__ import annotations

import enum


class Behaviour(enum.Enum):
    """The behaviours, by prefix."""

    CHARGE = ""
    DECLINE = "decline_"
    ERROR_AFTER_CHARGE = "error_after_charge_"
    ERROR = "error_"
    ERROR_ONCE = "error_once_"
    TIMEOUT_AFTER_CHARGE = "timeout_after_charge_"
    SLOW = "slow_"
    DEPOSIT = "deposit_"
    NO_REFUND = "no_refund_"


# Longest first: error_after_charge_ begins with error_, and every key with "".
_LONGEST_FIRST = sorted(Behaviour, key=lambda behaviour: len(behaviour.value), reverse=True)


def behaviour_of(payment_key: str) -> Behaviour:
    """The behaviour for the key's prefix."""
    return next(one for one in _LONGEST_FIRST if payment_key.startswith(one.value))
