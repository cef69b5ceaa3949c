"""Breaches in the book of the gateway's record.

The format is that of ``test_breaches``.
"""

from __future__ import annotations

from typing import Final

from tests.integration.audit.books import DIRECT, PAID_A, PAID_B, UNKNOWN, A, C
from tests.integration.audit.payment_books import DIRECTLY, gateway_charge

BREACHES: Final = f"""
the gateway has refunded what Tally did not | I3 I7 | charge
    payment {DIRECT} key key-34: CONFIRMED over 900 with 0 refunded
    INSERT INTO cancels VALUES ('d', 'key-34', 900, 'r', 'then');
    UPDATE payments SET balance_amount = 0, transaction_key = 'd' WHERE payment_key = 'key-34'
the gateway names another transaction of a charge | I3 I7 | charge
    payment {DIRECT} key key-34: the gateway names transaction x and not t key-34
    UPDATE payments SET transaction_key = 'x' WHERE payment_key = 'key-34'
the gateway approved another transaction | I3 I7 | charge
    payment {PAID_B} key key-32: transaction t key-32, at the gateway x
    UPDATE answers SET body = '{{"paymentKey": "key-32", "lastTransactionKey": "x"}}'
    WHERE idempotency_key = 'confirm:key-32'
the gateway's balance is another | I3 I7 | charge
    payment {DIRECT} key key-34: the gateway's balance is 899, and 900 are left
    UPDATE payments SET balance_amount = 899 WHERE payment_key = 'key-34'
the gateway has captured without a payment | I3 I7 | charge
    key extra: 5 captured, and there is no such payment
    {gateway_charge("extra", "x", 5, 5)}
the gateway has captured another amount | I3 I7 | charge
    at the gateway 1,600 captured and 0 refunded
    UPDATE payments SET total_amount = 1600 WHERE order_id = '{A}'
the gateway has captured another amount of a payment under way | I3 I7 | charge
    payment {UNKNOWN} key key-35: UNKNOWN over 60, at the gateway 61 captured
    UPDATE payments SET total_amount = 61, balance_amount = 61 WHERE payment_key = 'key-35'
the gateway has captured a payment under way for another order | I3 I7 | charge
    payment {UNKNOWN} key key-35: at the gateway for {C} and not {DIRECTLY}
    UPDATE payments SET order_id = '{C}' WHERE payment_key = 'key-35'
the gateway has captured another currency | I3 I7 | charge
    payment {PAID_A} key key-31: at the gateway for USD and not KRW
    UPDATE payments SET currency = 'USD' WHERE order_id = '{A}'
the gateway has captured for another order | I3 I7 | charge
    at the gateway for {C} and not {A}
    UPDATE payments SET order_id = '{C}' WHERE order_id = '{A}'
the gateway has lost a capture | I3 I7 | charge
    payment {PAID_A} key key-31: CONFIRMED over 1,500 with 0 refunded
    DELETE FROM payments WHERE order_id = '{A}'
the gateway has not refunded | I3 I7 | charge
    payment {PAID_B} key key-32: CANCELLED over 700 with 700 refunded
    DELETE FROM cancels
the gateway has charged a declined card | I3 I7 | charge
    DECLINED over 600 with 0 refunded (0 of it outside Tally), at the gateway 600 captured
    UPDATE payments SET status = 'DONE', approved_at = 'then' WHERE status = 'ABORTED'
"""
