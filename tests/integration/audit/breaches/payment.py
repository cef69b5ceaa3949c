"""Breaches in the book of the payment service.

The format is that of ``test_breaches``.
"""

from __future__ import annotations

from typing import Final

from tests.integration.audit.books import (
    BEFORE,
    DECLINED_C,
    DIRECT,
    HOUR_PASSES,
    NOW,
    PAID_A,
    PAID_B,
    PAY_B,
    UNKNOWN,
    A,
    answer,
    uid,
)
from tests.integration.audit.payment_books import DIRECTLY, payment_body, payment_row

NOBODY = uid(99)
BREACHES: Final = f"""
a payment's amount is another | I7 I8 | payment and its answer
    ConfirmPayment direct-1 of bob: answered, and its payment {DIRECT} is CONFIRMED over 901
    UPDATE payments SET amount_minor = 901 WHERE payment_id = '{DIRECT}'
a decline has another code than its answer | I8 | payment and its answer
    refused, and its payment {DECLINED_C} is DECLINED over 600
    UPDATE payments SET failure_code = 'OTHER' WHERE payment_id = '{DECLINED_C}'
a cancelled payment is confirmed again | I8 | answer about settling a payment
    answered with payment {PAID_B} as CANCELLED over 700, and it is CONFIRMED over 700
    UPDATE payments SET state = 'CONFIRMED', refunded_minor = 0, due_time = '{NOW}'
    WHERE payment_id = '{PAID_B}'
more is refunded than was paid | I7 | amounts and times of the payment
    payment {PAID_B} (CANCELLED) over 700: refunded 701
    ALTER TABLE payments DROP CONSTRAINT payments_refunded_at_most_once;
    UPDATE payments SET refunded_minor = 701 WHERE payment_id = '{PAID_B}'
a payment changed before it was created | I7 | amounts and times of the payment
    payment {DIRECT} (CONFIRMED) over 900
    UPDATE payments SET update_time = '2000-01-01' WHERE payment_id = '{DIRECT}'
a payment was cancelled without a reason | I7 | amounts and times of the payment
    payment {DIRECT} (CONFIRMED) over 900
    UPDATE payments SET cancel_request_time = '{NOW}' WHERE payment_id = '{DIRECT}'
two payments have one transaction | I7 | transaction of one payment
    transaction t key-31 is of 2 payments: {PAID_A}, {DIRECT}
    UPDATE payments SET gateway_transaction_id = 't key-31' WHERE payment_id = '{DIRECT}'
a cancelled payment has another transaction | I3 I7 | charge
    payment {PAID_B} key key-32: transaction other, at the gateway t key-32
    UPDATE payments SET gateway_transaction_id = 'other' WHERE payment_id = '{PAID_B}'
a payment is not moved | I6 I7 | overdue payment
    payment {UNKNOWN} of order elsewhere is UNKNOWN and due since
    UPDATE payments SET due_time = '{BEFORE}' WHERE payment_id = '{UNKNOWN}'
the service runs and no payment moves | I6 I7 | overdue payment
    payment {UNKNOWN} of order elsewhere is UNKNOWN and due since
    {HOUR_PASSES}
a charge of a payment that does not move | I3 I7 | charge
    payment {UNKNOWN} key key-35: UNKNOWN, 60 at the gateway, and nothing moves
    {HOUR_PASSES}
a refund has no next try | I7 | open payment without a next try
    payment {DIRECT} of order elsewhere is CONFIRMED, to be refunded, and no try is due
    ALTER TABLE payments DROP CONSTRAINT payments_due_while_open;
    UPDATE payments SET cancel_reason = 'r' WHERE payment_id = '{DIRECT}'
the heartbeat is gone | I6 | heartbeat
    the heartbeat is gone: nothing can be overdue
    DELETE FROM heartbeat
a refund outside Tally is not at the gateway | I3 I7 | charge
    CONFIRMED over 900 with 100 refunded (0 of it outside Tally), at the gateway 900
    UPDATE payments SET refunded_minor = 100 WHERE payment_id = '{DIRECT}'
a refund by Tally is recorded as made outside it | I3 I7 | charge
    payment {PAID_B} key key-32: 700 refunded by Tally's calls, and 0 are recorded
    UPDATE payments SET refunded_outside_minor = 700 WHERE payment_id = '{PAID_B}'
a payment belongs to no saga | I3 I7 I8 | payment
    saga {NOBODY} of bob: payment of KRW 900, and no such saga
    UPDATE payments SET request_id = '{NOBODY}:confirm_payment' WHERE payment_id = '{DIRECT}'
an order's payment is gone | I3 I7 I8 | payment
    order {A}: KRW 1,500 recorded, and there is no payment
    DELETE FROM payments WHERE payment_id = '{PAID_A}'
a paid order's payment is not decided | I7 I8 | payment
    order {A}: payment with state UNKNOWN and not CONFIRMED or CANCELLED
    UPDATE payments SET state = 'UNKNOWN', gateway_transaction_id = NULL, due_time = now()
    WHERE payment_id = '{PAID_A}'
a payment is answered and not confirmed | I8 | payment and its answer
    ConfirmPayment lost of ann: answered, and its payment does not exist
    {answer("ConfirmPayment", "ann", "lost", {"payment_id": NOBODY})}
a payment is answered with another amount | I8 | payment and its answer
    ConfirmPayment direct-1 of bob: answered, and its payment {DIRECT} is CONFIRMED over 900
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{amount,amount_minor}}', '1')::text
    WHERE request_id = 'direct-1'
a payment has a transaction that is not its own | I3 I7 I8 | charge
    payment {DIRECT} key key-34: transaction t key-31, at the gateway t key-34
    UPDATE payments SET gateway_transaction_id = 't key-31' WHERE payment_id = '{DIRECT}'
a cancellation is answered and did not happen | I8 | answer about settling a payment
    CancelPayment lost of bob: answered with payment {DIRECT} as CANCELLED over 900, and it
    {answer("CancelPayment", "bob", "lost", payment_body(DIRECT, DIRECTLY, 900, "CANCELLED"))}
a payment is answered as settled and has no reason | I8 | answer about settling a payment
    ResolvePayment lost of bob: answered with payment {DIRECT} as CONFIRMED over 900, and it
    {answer("ResolvePayment", "", "lost", payment_body(DIRECT, DIRECTLY, 900, "CONFIRMED"))}
a confirmed payment is cancelled by its answer | I8 | payment and its answer
    ConfirmPayment direct-1 of bob: cancelled, and its payment {DIRECT} is CONFIRMED
    UPDATE answers SET state = 'CANCELLED', body = NULL WHERE request_id = 'direct-1'
a confirmed payment has no answer | I8 | payment and its answer
    ConfirmPayment direct-1 of bob: not answered, and its payment {DIRECT} is CONFIRMED
    DELETE FROM answers WHERE request_id = 'direct-1'
a second payment of the order was captured | I3 I7 | payment
    saga {PAY_B} of ann: payment of KRW 5, and no such saga
    {payment_row(NOBODY, "ann", f"{PAY_B}:confirm_payment", (A, 5), "CONFIRMED")}
"""
