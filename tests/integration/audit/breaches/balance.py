"""Breaches in the book of the balance service.

The format is that of ``test_breaches``.
"""

from __future__ import annotations

from typing import Final

from tests.integration.audit.books import (
    BEFORE,
    PAY_A,
    PAY_C,
    PAY_D,
    A,
    B,
    C,
    D,
    answer,
    entry_body,
    ledger_entry,
    uid,
)

NOBODY = uid(99)
NEW = (NOBODY, 5, -5, 6_995)
"""An entry of 5 won that follows the last one of ann."""
UNCLAIMED = ("DEDUCT", f"{NOBODY}:deduct_balance", A, None)
REFUND_D = ("REFUND", "undone", D, f"{PAY_D}:deduct_balance")
BREACHES: Final = f"""
the sum of charges is wrong | I2 | account
    account of ann in KRW: 10001 charged, sum of its charges 10000
    UPDATE accounts SET charged_minor = charged_minor + 1 WHERE user_id = 'ann'
charges are summed at a version to come | I2 | account
    account of ann in KRW: charges summed at version 5 of 4
    ALTER TABLE accounts DROP CONSTRAINT accounts_charged_at_version;
    UPDATE accounts SET charged_at_version = 5 WHERE user_id = 'ann'
an attempt under way deducted another amount | I3 | deduction
    order {D}: deduction with amount 251 and not 250
    UPDATE ledger_entries SET amount_minor = -251 WHERE entry_id = '{uid(205)}'
an attempt under way deducted in another currency | I3 | deduction
    order {D}: deduction with currency_code USD and not KRW
    UPDATE ledger_entries SET currency_code = 'USD' WHERE entry_id = '{uid(205)}'
an attempt under way deducted for another order | I3 | deduction
    order {D}: deduction with order_id {A} and not {D}
    UPDATE ledger_entries SET order_id = '{A}' WHERE entry_id = '{uid(205)}'
an attempt under way has lost its deduction | I3 | deduction
    order {D}: the deduction is recorded as done, and there is none
    DELETE FROM ledger_entries WHERE entry_id = '{uid(205)}'
an attempt under way has its deduction undone by nobody | I3 | deduction
    order {D}: the deduction of KRW 250 is undone, and no saga has begun to undo it
    {ledger_entry("bob", (NOBODY, 6, 250, 4_900), *REFUND_D)}
an account changed at another time than its last entry | I2 | account
    account of ann in KRW: changed at
    UPDATE accounts SET update_time = '{BEFORE}' WHERE user_id = 'ann'
an entry came before the one before it | I2 | running sum
    has 7000 as the balance after it, and 6600 as the balance before it, and came at
    UPDATE ledger_entries SET create_time = '{BEFORE}' WHERE entry_id = '{uid(104)}'
a deduction adds | I2 | running sum
    account of ann in KRW: entry 2 (3000)
    ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_sign;
    UPDATE ledger_entries SET amount_minor = 3000 WHERE entry_id = '{uid(102)}'
balances add up to less than their entries | I1 I3 | sums of the currency
    KRW: balances add up to 11550, entries to 11650 (15000 charged, 3350 spent)
    UPDATE accounts SET available_minor = available_minor - 100 WHERE user_id = 'bob'
an entry is answered with another order | I8 | entry and its answer
    DEDUCT {PAY_A}:deduct_balance of ann: answered as entry 2
    UPDATE ledger_entries SET order_id = '{B}' WHERE entry_id = '{uid(102)}'
a refund is answered and its entry is gone | I8 | answer about a refund
    RefundDeduction {PAY_C}:deduct_balance:undo of ann: answered with entry {uid(104)}
    DELETE FROM ledger_entries WHERE entry_id = '{uid(104)}'
a balance is changed | I1 I2 I3 | account
    account of ann in KRW: balance 7001, sum of its entries 7000
    UPDATE accounts SET available_minor = available_minor + 1 WHERE user_id = 'ann'
a balance is negative | I1 I2 I3 | account
    account of eve in KRW: balance -1
    ALTER TABLE accounts DROP CONSTRAINT accounts_available_not_negative;
    UPDATE accounts SET available_minor = -1 WHERE user_id = 'eve'
money moves between two accounts | I2 | account
    account of bob in KRW: balance 4649, sum of its entries 4650
    UPDATE accounts SET available_minor = available_minor
    + CASE user_id WHEN 'ann' THEN 1 ELSE -1 END WHERE user_id <> 'eve'
the last entry is deleted | I1 I2 I3 I8 | account
    version 5, last entry 4
    DELETE FROM ledger_entries WHERE user_id = 'bob' AND sequence = 5
an entry in the middle is deleted | I2 I8 | account
    4 entries numbered 1 to 5
    DELETE FROM ledger_entries WHERE user_id = 'bob' AND sequence = 3
an account is deleted | I1 I2 I3 | account
    account of bob in KRW: has entries and does not exist
    DELETE FROM accounts WHERE user_id = 'bob'
a running sum is wrong | I2 | running sum
    entry 2 (-1000) has 1 as the balance after it, and 5000 as the balance before it
    UPDATE ledger_entries SET balance_after_minor = 1 WHERE entry_id = '{uid(202)}'
a charge is larger than its balance | I1 I2 I3 I8 | sums of the currency
    KRW: balances add up to 11650, entries to 21650 (25000 charged, 3350 spent)
    UPDATE ledger_entries SET amount_minor = 20000 WHERE entry_id = '{uid(101)}'
a refund is larger than its deduction | I2 | refund
    deduction {PAY_C}:deduct_balance was -400 in KRW
    UPDATE ledger_entries SET amount_minor = 500 WHERE entry_id = '{uid(104)}'
a refund has no deduction | I2 I8 | refund
    deduction no-such is not in the ledger
    UPDATE ledger_entries SET refund_of = 'no-such' WHERE kind = 'REFUND'
a deduction is refunded twice | I2 | refund
    {PAY_C}:deduct_balance is refunded 2 times
    DROP INDEX ledger_entries_refund_once;
    {ledger_entry("ann", (NOBODY, 5, 400, 0), "REFUND", "again", C, f"{PAY_C}:deduct_balance")}
a deduction belongs to no saga | I3 | deduction
    saga {NOBODY} of ann: deduction of KRW 5, and no such saga
    {ledger_entry("ann", NEW, *UNCLAIMED)}
    {answer("DeductBalance", "ann", f"{NOBODY}:deduct_balance", entry_body("ann", NEW, *UNCLAIMED))}
    UPDATE accounts SET available_minor = 6995, version = 5 WHERE user_id = 'ann'
a deduction came after its cancellation | I3 I8 | deduction
    order {C}: deduction of KRW 400, and this attempt paid nothing
    DELETE FROM answers WHERE request_id = '{PAY_C}:deduct_balance:undo';
    DELETE FROM ledger_entries WHERE kind = 'REFUND' AND user_id = 'ann';
    UPDATE accounts SET available_minor = 6600, version = 3, charged_at_version = 3
    WHERE user_id = 'ann'
a deduction is answered and not entered | I8 | entry and its answer
    DEDUCT lost of ann: answered, and not in the ledger
    {answer("DeductBalance", "ann", "lost", {"entry_id": NOBODY})}
a charge is answered with another amount | I8 | entry and its answer
    CHARGE charge-1 of ann: answered as entry 1 with 1, in the ledger as 1 with 10000
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{amount_minor}}', '1')::text
    WHERE method = 'ChargeBalance' AND scope = 'ann'
a refund is answered and not entered | I8 | answer about a refund
    answered with entry gone, which is not in the ledger
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{entry_id}}', '"gone"')::text
    WHERE method = 'RefundDeduction' AND scope = 'ann'
an entry has no answer | I8 | entry and its answer
    CHARGE charge-1 of ann: in the ledger with 10000, and not answered
    DELETE FROM answers WHERE method = 'ChargeBalance' AND scope = 'ann'
a refunded deduction is not cancelled | I8 | entry and its answer
    refunded, and its request is answered, not cancelled
    UPDATE answers SET state = 'ANSWERED', body = 'null' WHERE request_id = '{PAY_C}:deduct_balance'
"""
