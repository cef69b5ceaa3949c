"""Every invariant is broken in otherwise clean books, and the audit must report the breach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

import balance_service.tables
import coupon_service.tables
import order_service.tables
import payment_service.tables
from deploy.audit.audit import SERVICES
from deploy.audit.gateway import PAYMENTS, RECORDS
from deploy.audit.participants import PARTICIPANTS
from deploy.audit.report import INVARIANTS
from tests.integration.audit.books import (
    BEFORE,
    CAMPAIGN,
    CANCEL_B,
    COUPON_A,
    COUPON_B,
    DECLINED_C,
    DIRECT,
    DIRECTLY,
    NOW,
    PAID_A,
    PAID_B,
    PAY_A,
    PAY_B,
    PAY_C,
    PAY_D,
    PRODUCT,
    TOMORROW,
    UNKNOWN,
    A,
    B,
    C,
    D,
    E,
    F,
    answer,
    entry_body,
    gateway_charge,
    ledger_entry,
    order_row,
    payment_body,
    payment_row,
    redemption,
    saga,
    uid,
)
from tests.integration.audit.conftest import Books

NOBODY = uid(99)
NEW = (NOBODY, 5, -5, 6_995)
"""An entry of 5 won that follows the last one of ann."""
UNCLAIMED = ("DEDUCT", f"{NOBODY}:deduct_balance", A, None)
RESOLVED_C = {
    "saga_id": PAY_C,
    "order_id": C,
    "kind": "PAY_ORDER",
    "resolution_reason": "gave it back",
}
RUNNING_A = f"""
UPDATE sagas SET state = 'RUNNING' WHERE saga_id = '{PAY_A}';
"""
"""The attempt that paid A has done all its steps, and is under way."""
CANCELLING_B = f"""
UPDATE sagas SET state = 'RUNNING', steps = jsonb_set(steps, '{{1,state}}', '"BEGUN"')
WHERE saga_id = '{CANCEL_B}';
"""
"""The cancellation of B is under way."""
REFUND_D = ("REFUND", "undone", D, f"{PAY_D}:deduct_balance")
BREACHES: Final = {
    "balance": f"""
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
""",
    "order": f"""
a step that has not begun has deducted | I3 | deduction
    order {D}: deduction of KRW 250, and this attempt paid nothing
    UPDATE sagas SET steps = jsonb_set(steps, '{{1,state}}', '"PENDING"') WHERE saga_id = '{PAY_D}'
a step that was skipped has deducted | I3 | deduction
    order {D}: deduction of KRW 250, and this attempt paid nothing
    UPDATE sagas SET steps = jsonb_set(steps, '{{1,state}}', '"SKIPPED"') WHERE saga_id = '{PAY_D}'
a saga of an unknown plan has not begun to deduct | I3 | deduction
    order {D}: deduction of KRW 250, and this attempt paid nothing
    UPDATE sagas SET plan_version = 9, steps = '[]' WHERE saga_id = '{PAY_D}'
an attempt needs attention and deducted another amount | I3 | deduction
    order {D}: deduction with amount 250 and not 249
    UPDATE sagas SET state = 'NEEDS_ATTENTION', asked = asked || '{{"balance_minor": 249}}',
    steps = jsonb_set(steps, '{{1,state}}', '"UNKNOWN"') WHERE saga_id = '{PAY_D}'
an attempt under way deducted, and asked for the gateway | I3 | deduction
    order {D}: deduction of KRW 250, and this attempt asks for none
    UPDATE sagas SET asked = asked || '{{"payment_key": "k"}}' WHERE saga_id = '{PAY_D}'
an attempt under way found another discount | I5 I3 I7 | redemption
    order {A}: redemption with amount 500 and not 499
    {RUNNING_A}
    UPDATE sagas SET facts = jsonb_set(facts, '{{discount_minor}}', '499')
an attempt under way leaves another amount for the gateway | I3 I7 | payment
    order {A}: payment with amount 1500 and not 1400
    {RUNNING_A}
    UPDATE sagas SET asked = jsonb_set(asked, '{{balance_minor}}', '3100')
    WHERE saga_id = '{PAY_A}'
an attempt under way asked for another coupon | I5 | redemption
    order {A}: redemption with coupon_id {COUPON_A} and not {COUPON_B}
    {RUNNING_A}
    UPDATE sagas SET asked = jsonb_set(asked, '{{coupon_id}}', '"{COUPON_B}"')
    WHERE saga_id = '{PAY_A}'
an attempt under way found another payment | I3 I7 | payment
    order {A}: payment with payment_id {PAID_A} and not {NOBODY}
    {RUNNING_A}
    UPDATE sagas SET facts = jsonb_set(facts, '{{payment_id}}', '"{NOBODY}"')
    WHERE saga_id = '{PAY_A}'
a cancellation under way is of another amount | I3 | deduction
    order {B}: deduction with amount 1000 and not 999
    {CANCELLING_B}
    UPDATE orders SET paid_by_balance_minor = 999, paid_by_gateway_minor = 701
    WHERE order_id = '{B}'
a cancellation has not begun, and the deduction is undone | I3 | deduction
    order {B}: the deduction of KRW 1,000 is undone, and no saga has begun to undo it
    {CANCELLING_B}
    UPDATE sagas SET steps = jsonb_set(steps, '{{1,state}}', '"PENDING"')
    WHERE saga_id = '{CANCEL_B}'
the total stock is raised | I4 | stock journal
    has 100 stocked with 40 added; before it 60, and the product has 101 stocked
    UPDATE products SET stocked = stocked + 1
a stocking is not in the journal | I4 | stock journal
    product {PRODUCT}: 100 stocked, and not in the journal
    DELETE FROM stock_entries
the last stocking is gone from the journal | I4 I8 | stock journal
    has 60 stocked with 60 added; before it 0, and the product has 100 stocked
    DELETE FROM stock_entries WHERE kind = 'RESTOCKED'
the first stocking is gone from the journal | I4 I8 | stock journal
    journal entry RESTOCKED restock-1 of version 2 has 100 stocked with 40 added; before it 0
    DELETE FROM stock_entries WHERE kind = 'CREATED'
a stocking added another quantity | I4 | stock journal
    has 100 stocked with 41 added; before it 60
    UPDATE stock_entries SET quantity = 41 WHERE kind = 'RESTOCKED'
a stocking is of a product that does not exist | I4 | stock journal
    product {NOBODY}: is in the stock journal and does not exist
    UPDATE stock_entries SET product_id = '{NOBODY}' WHERE kind = 'RESTOCKED'
an order expired and its stock stays reserved | I4 | product
    product {PRODUCT}: 5 reserved, 1 in unpaid orders
    UPDATE orders SET state = 'EXPIRED', expire_time = update_time WHERE order_id = '{C}'
an order counts what its product did not reserve | I4 | product
    product {PRODUCT}: 5 reserved, 4 in unpaid orders
    UPDATE order_items SET quantity = 3 WHERE order_id = '{C}'
a line has another price than its product | I6 | lines of the order
    order {E}: 7 of product {PRODUCT} at 249 KRW, and the product costs 250 KRW
    UPDATE order_items SET unit_price_minor = 249 WHERE order_id = '{E}'
a product has another price than its lines | I6 | lines of the order
    order {A}: 20 of product {PRODUCT} at 250 KRW, and the product costs 251 KRW
    UPDATE products SET price_minor = 251
a line has no order | I6 | lines of the order
    order {E}: 7 of product {PRODUCT} at 250, and there is no such order
    DELETE FROM orders WHERE order_id = '{E}'
an order expired before its time | I6 | times of the order
    order {E} (EXPIRED): created
    UPDATE orders SET expire_time = '{TOMORROW}' WHERE order_id = '{E}'
an order changed before it was created | I6 | times of the order
    order {C} (PENDING): created
    UPDATE orders SET update_time = create_time - interval '1 second' WHERE order_id = '{C}'
a pending order kept its coupon | I6 | amounts of the order
    by gateway 0, coupon {COUPON_B}
    UPDATE orders SET coupon_id = '{COUPON_B}' WHERE order_id = '{C}'
a cancelled order was never paid | I6 | amounts of the order
    order {B} (CANCELLED): lines 2000, subtotal 2000, discount 300
    DELETE FROM sagas WHERE saga_id IN ('{PAY_B}', '{CANCEL_B}')
an attempt began after the order's expiry | I6 | attempt after the order's expiry
    saga {PAY_C} began to pay it at
    UPDATE sagas SET create_time = '{TOMORROW}', update_time = '{TOMORROW}'
    WHERE saga_id = '{PAY_C}'
a saga is another user's than its order | I6 | ended saga
    saga {PAY_C} (COMPENSATED) of order {C}: there is no such order
    UPDATE orders SET user_id = 'eve' WHERE order_id = '{C}'
a resolved saga left a step begun | I6 | ended saga
    saga {PAY_C} (RESOLVED) of order {C}: steps redeem_coupon SKIPPED, deduct_balance DONE
    UPDATE sagas SET state = 'RESOLVED', resolution_reason = 'r',
    steps = jsonb_set(steps, '{{1,state}}', '"DONE"') WHERE saga_id = '{PAY_C}'
a saga found another discount than its order has | I6 | saga and its order
    saga {PAY_A} (PAY_ORDER) of order {A}: asked
    UPDATE sagas SET facts = jsonb_set(facts, '{{discount_minor}}', '499')
    WHERE saga_id = '{PAY_A}'
an order has another coupon than its saga | I6 | saga and its order
    coupon {COUPON_B}, payment {PAID_A}
    UPDATE orders SET coupon_id = '{COUPON_B}' WHERE order_id = '{A}'
a cancellation gives back another amount | I6 | saga and its order
    saga {CANCEL_B} (CANCEL_ORDER) of order {B}: asked
    UPDATE sagas SET asked = jsonb_set(asked, '{{balance_minor}}', '999')
    WHERE saga_id = '{CANCEL_B}'
a cancellation undoes another attempt | I6 | saga and its order
    saga {CANCEL_B} (CANCEL_ORDER) of order {B}: asked
    UPDATE sagas SET asked = jsonb_set(asked, '{{pay_saga_id}}', '"{PAY_A}"')
    WHERE saga_id = '{CANCEL_B}'
a step ended before it began | I6 | times of the saga
    saga {PAY_A} of order {A}: created
    UPDATE sagas SET steps = jsonb_set(steps, '{{0,end_time}}', '"2000-01-01T00:00:00Z"')
    WHERE saga_id = '{PAY_A}'
the heartbeat is gone | I3 I5 I6 I7 | heartbeat
    the heartbeat is gone: nothing can be overdue
    DELETE FROM heartbeat
a pending order is not expired | I6 | overdue
    order {C} is PENDING, to be paid until
    UPDATE orders SET expire_time = create_time + interval '1 second' WHERE order_id = '{C}'
a saga is not moved | I6 I3 | overdue
    saga {PAY_D} of order {D}, begun
    UPDATE sagas SET lease_until = '{BEFORE}' WHERE saga_id = '{PAY_D}'
the service runs and nothing moves | I6 | overdue
    is RUNNING and due since
    UPDATE heartbeat SET beat_time = beat_time + interval '1 hour'
a saga that does not move explains nothing | I3 I6 | deduction
    order {D}: deduction of KRW 250, and saga {PAY_D} does not move
    UPDATE sagas SET lease_until = '{BEFORE}' WHERE saga_id = '{PAY_D}'
a saga that waits too long explains nothing | I3 I6 | deduction
    order {D}: deduction of KRW 250, and saga {PAY_D} does not move
    UPDATE heartbeat SET beat_time = beat_time + interval '1 hour'
an order's line is not in its answer | I8 | order and its answer
    CreateOrder create-{E} of ann: answered with order {E} over 1750
    UPDATE order_items SET quantity = 8 WHERE order_id = '{E}'
an order is answered with another expiry | I8 | order and its answer
    CreateOrder create-{C} of ann: answered with order {C}
    UPDATE orders SET expire_time = expire_time + interval '1 second' WHERE order_id = '{C}'
a restock is answered with another stock | I8 | stocking and its answer
    RESTOCKED by restock-1: answered with
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{stocked}}', '101')::text
    WHERE method = 'RestockProduct'
a restock is answered and not in the journal | I4 I8 | stocking and its answer
    RESTOCKED by restock-1: answered with product {PRODUCT}, and not in the stock journal
    DELETE FROM stock_entries WHERE kind = 'RESTOCKED'
a restock has no answer | I8 | stocking and its answer
    RESTOCKED by restock-1: product {PRODUCT} has the entry, and it is not answered
    DELETE FROM answers WHERE method = 'RestockProduct'
a product has another name than its answer | I8 | stocking and its answer
    CREATED by product-1: answered with
    UPDATE products SET name = 'another'
an attempt that is refused has no saga | I8 | attempt to pay and its answer
    PayOrder pay-{PAY_C} of ann: refused, and its saga does not exist
    DELETE FROM sagas WHERE saga_id = '{PAY_C}'
an attempt is refused for another reason | I8 | attempt to pay and its answer
    PayOrder pay-{PAY_C} of ann: refused, and its saga {PAY_C} is COMPENSATED
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{reason}}', '"x"')::text
    WHERE request_id = 'pay-{PAY_C}'
an order has other amounts than its answer | I8 | answer about paying
    by balance 3000, by gateway 1500, and order {A} has 500, 2999, 1501
    UPDATE orders SET paid_by_balance_minor = 2999, paid_by_gateway_minor = 1501
    WHERE order_id = '{A}'
an order's cancellation is answered and it is paid | I8 | answer about cancelling
    CancelOrder cancel-b of bob: answered, and order {B} is PAID
    UPDATE orders SET state = 'PAID' WHERE order_id = '{B}'
a closed saga has another reason than its answer | I8 | answer about a saga
    ResolveSaga close-1: answered about saga {PAY_C} of order {C}, and it is COMPENSATED
    {answer("ResolveSaga", "", "close-1", RESOLVED_C)}
an answer is about a saga that does not exist | I8 | answer about a saga
    RetrySaga retry-1: answered about saga {PAY_C} of order {C}, and there is no such saga
    {answer("RetrySaga", "", "retry-1", RESOLVED_C)}
    DELETE FROM sagas WHERE saga_id = '{PAY_C}'
a resolved saga left a deduction | I3 | deduction
    undoes it, or records that it stands
    UPDATE sagas SET state = 'RESOLVED', resolution_reason = 'r', plan_version = 1,
    failure = '{{"reason": "r"}}' WHERE saga_id = '{PAY_D}';
    UPDATE orders SET state = 'PENDING' WHERE order_id = '{D}'
an order saved nothing by its coupon | I5 I6 | redemption
    order {A}: redemption of KRW 500, and this attempt paid nothing
    UPDATE orders SET coupon_id = NULL WHERE order_id = '{A}'
a coupon's saga is another user's | I5 | redemption
    saga {PAY_A} of ann: redemption of KRW 500, and no such saga
    UPDATE sagas SET user_id = 'eve' WHERE saga_id = '{PAY_A}'
a coupon's saga does not move | I5 | redemption
    order {A}: redemption of KRW 500, and saga {PAY_A} does not move
    {RUNNING_A}
    UPDATE heartbeat SET beat_time = beat_time + interval '1 hour'
a payment's saga is another user's | I3 I7 | payment
    saga {PAY_A} of ann: payment of KRW 1,500, and no such saga
    UPDATE sagas SET user_id = 'eve' WHERE saga_id = '{PAY_A}'
a payment's saga does not move | I3 I7 | payment
    order {A}: payment of KRW 1,500, and saga {PAY_A} does not move
    {RUNNING_A}
    UPDATE heartbeat SET beat_time = beat_time + interval '1 hour'
an attempt's saga is gone | I3 | deduction
    saga {PAY_D} of bob: deduction of KRW 250, and no such saga
    DELETE FROM sagas WHERE saga_id = '{PAY_D}'
a paid order's deduction is another amount | I3 | deduction
    order {A}: deduction with amount 3000 and not 2900
    UPDATE orders SET paid_by_balance_minor = 2900, discount_minor = 600 WHERE order_id = '{A}'
a reserved count is dropped | I4 | product
    product {PRODUCT}: 0 reserved, 5 in unpaid orders
    UPDATE products SET reserved = 0
a sold count is too high | I4 | product
    product {PRODUCT}: 21 sold, 20 in paid orders
    UPDATE products SET sold = sold + 1
more is sold than was stocked | I4 | product
    product {PRODUCT}: 24 stocked, 5 reserved, 20 sold
    ALTER TABLE products DROP CONSTRAINT products_stock_not_oversold;
    UPDATE products SET stocked = 24
a product is gone | I4 | product
    product {PRODUCT}: is ordered and does not exist
    DELETE FROM products
a paid order does not add up | I6 I5 | amounts of the order
    order {A} (PAID): lines 5000, subtotal 5000, discount 499
    ALTER TABLE orders DROP CONSTRAINT orders_paid_in_full;
    UPDATE orders SET discount_minor = 499 WHERE order_id = '{A}'
a cancelled order does not add up | I3 I6 | amounts of the order
    order {B} (CANCELLED): lines 2000, subtotal 2000, discount 300, by balance 999
    UPDATE orders SET paid_by_balance_minor = 999 WHERE order_id = '{B}'
the lines are not the subtotal | I6 | amounts of the order
    order {E} (EXPIRED): lines 7, subtotal 1750
    UPDATE order_items SET unit_price_minor = 1 WHERE order_id = '{E}'
an order is paid without any effect | I3 I5 I6 I7 | payment
    order {NOBODY}: KRW 100 recorded, and there is no payment
    {order_row(NOBODY, "ann", 2, "PAID", (100, 300, 100), coupon=COUPON_B, payment=NOBODY)}
    UPDATE products SET sold = sold + 2
an order made an illegal transition | I4 I6 | transitions of the order
    order {D} is EXPIRED, with 0 payments completed, 1 under way
    UPDATE orders SET state = 'EXPIRED' WHERE order_id = '{D}'
an order was paid twice | I3 I5 I6 I7 I8 | transitions of the order
    order {A} is PAID, with 2 payments completed
    {saga(NOBODY, A, "ann", "COMPLETED", "redeem_coupon DONE, complete_order DONE", 5_000)}
a cancelled order has a cancellation under way | I6 | transitions of the order
    order {B} is CANCELLED, with 1 payments completed, 0 under way, 0 cancellations
    UPDATE sagas SET state = 'RUNNING' WHERE saga_id = '{CANCEL_B}'
an ended saga left a step begun | I6 | ended saga
    saga {PAY_C} (COMPENSATED) of order {C}: steps redeem_coupon SKIPPED, deduct_balance BEGUN
    UPDATE sagas SET steps = jsonb_set(steps, '{{1,state}}', '"BEGUN"') WHERE saga_id = '{PAY_C}'
a saga has no order | I6 | ended saga
    there is no such order
    {saga(NOBODY, uid(98), "ann", "RUNNING", "complete_order PENDING", 1)}
an order is answered and does not exist | I8 | order and its answer
    CreateOrder lost of ann: answered with order {NOBODY}, which does not exist
    {answer("CreateOrder", "ann", "lost", {"order_id": NOBODY})}
an order is answered with another amount | I8 | order and its answer
    CreateOrder create-{E} of ann: answered with order {E} over 1, created is {E} over 1750
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{subtotal_minor}}', '1')::text
    WHERE request_id = 'create-{E}'
a payment is answered with other amounts | I8 | answer about paying
    by balance 1, by gateway 1500, and order {A} has 500, 3000, 1500
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{paid_by_balance_minor}}', '1')::text
    WHERE request_id = 'pay-{PAY_A}'
an order was paid after its expiry | I6 | attempt after the order's expiry
    saga {PAY_A} began to pay it at
    UPDATE orders SET expire_time = create_time WHERE order_id = '{A}'
an order has no answer | I8 | order and its answer
    CreateOrder create-{E} of ann: order {E} exists, and is not answered
    DELETE FROM answers WHERE request_id = 'create-{E}'
a payment is answered and is under way | I8 | attempt to pay and its answer
    PayOrder pay-{PAY_D} of bob: answered, and its saga {PAY_D} is RUNNING
    {answer("PayOrder", "bob", f"pay-{PAY_D}", {"order_id": D})}
a refused attempt is not answered | I8 | attempt to pay and its answer
    PayOrder pay-{PAY_C} of ann: not answered, and its saga {PAY_C} is COMPENSATED
    DELETE FROM answers WHERE request_id = 'pay-{PAY_C}'
a cancellation is answered and did not happen | I8 | answer about cancelling
    CancelOrder lost of ann: answered, and order {A} is PAID
    {answer("CancelOrder", "ann", "lost", {"order_id": A})}
an order has another payment's id | I7 | payment
    order {A}: payment with payment_id {PAID_A} and not {NOBODY}
    UPDATE orders SET payment_id = '{NOBODY}' WHERE order_id = '{A}'
""",
    "coupon": f"""
a live redemption is gone | I5 I8 | coupon in use
    coupon {COUPON_A}: in use by order {A}, and no redemption is live
    DELETE FROM redemptions WHERE coupon_id = '{COUPON_A}'
a coupon was issued before its campaign began | I5 | times of the coupon
    coupon {COUPON_A}, issued
    UPDATE campaigns SET start_time = '{TOMORROW}', end_time = '2100-01-01'
a coupon is valid for longer than its lifetime | I5 | times of the coupon
    coupon {COUPON_B}, issued
    UPDATE coupons SET expire_time = expire_time + interval '1 second'
    WHERE coupon_id = '{COUPON_B}'
a coupon was redeemed after its expiry | I5 | times of the redemption
    redemption {PAY_B}:redeem_coupon: redeemed
    UPDATE redemptions SET redeem_time = '2100-01-01', restore_time = '2100-01-01'
    WHERE coupon_id = '{COUPON_B}'
a redemption is of another user's coupon | I5 | times of the redemption
    redemption {PAY_B}:redeem_coupon: coupon {COUPON_B} of bob does not exist
    UPDATE coupons SET user_id = 'eve' WHERE coupon_id = '{COUPON_B}'
a redemption is of a coupon of another campaign | I5 | discount and the campaign's terms
    300 off 2000, and by the campaign's terms 2000
    INSERT INTO campaigns SELECT '{NOBODY}', 'd', 'KRW', 5000, NULL, NULL, NULL, 1, 1, start_time,
    end_time, coupon_lifetime_us, 'campaign-2', create_time FROM campaigns;
    UPDATE coupons SET campaign_id = '{NOBODY}' WHERE coupon_id = '{COUPON_B}'
a redemption is of another amount | I5 | discount and the campaign's terms
    200 off 2000, and by the campaign's terms 300
    UPDATE redemptions SET discount_minor = 200 WHERE coupon_id = '{COUPON_B}'
an issue is answered with another number | I8 | issued coupon and its answer
    answered with coupon {COUPON_A} as number 3, issued is {COUPON_A} as number 1
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{issue_number}}', '3')::text
    WHERE method = 'IssueCoupon' AND scope = 'ann'
a coupon is answered and does not exist | I5 I8 | issued coupon and its answer
    answered with coupon {COUPON_B}, which does not exist
    DELETE FROM coupons WHERE coupon_id = '{COUPON_B}'
a redemption has another order than its answer | I8 | redemption and its answer
    redeemed is coupon {COUPON_A} by order {B}
    UPDATE redemptions SET order_id = '{B}' WHERE coupon_id = '{COUPON_A}'
a restoration is answered with another coupon | I8 | restoration and its answer
    RestoreCoupon restore-1 of bob: answered with coupon {NOBODY}, which does not exist
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{coupon,coupon_id}}', '"{NOBODY}"')::text
    WHERE method = 'RestoreCoupon'
a restored coupon has another number than its answer | I8 | restoration and its answer
    RestoreCoupon restore-1 of bob: answered with coupon {COUPON_B} as of
    UPDATE coupons SET issue_number = 3 WHERE coupon_id = '{COUPON_B}'
a coupon was restored at another time | I8 | restoration and its answer
    RestoreCoupon restore-1 of bob: answered with coupon {COUPON_B} as of
    UPDATE redemptions SET restore_time = '2100-01-01' WHERE coupon_id = '{COUPON_B}'
a restoration has no answer | I8 | restoration and its answer
    RestoreCoupon restore-1 of bob: coupon {COUPON_B} is restored, and it is not answered
    DELETE FROM answers WHERE method = 'RestoreCoupon'
a campaign is answered with other terms | I8 | campaign and its answer
    CreateCampaign campaign-1: answered with
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{quantity}}', '4')::text
    WHERE method = 'CreateCampaign'
a campaign has more coupons than its answer | I8 | campaign and its answer
    and campaign {CAMPAIGN} has other terms
    UPDATE campaigns SET quantity = 4
more coupons are issued than the quantity | I5 | campaign
    campaign {CAMPAIGN}: issued 2 of 1
    ALTER TABLE campaigns DROP CONSTRAINT campaigns_issued_within_quantity;
    UPDATE campaigns SET quantity = 1
a coupon is gone | I5 I8 | campaign
    campaign {CAMPAIGN}: issued 2, 1 coupons
    DELETE FROM coupons WHERE coupon_id = '{COUPON_B}'
an issue number is missing | I5 I8 | campaign
    campaign {CAMPAIGN}: 2 coupons with 2 numbers from 1 to 3
    UPDATE coupons SET issue_number = 3 WHERE coupon_id = '{COUPON_B}'
a user has two coupons of a campaign | I5 I8 | campaign
    campaign {CAMPAIGN}: 2 coupons of 1 users
    ALTER TABLE coupons DROP CONSTRAINT coupons_user_once;
    UPDATE coupons SET user_id = 'ann' WHERE coupon_id = '{COUPON_B}'
a coupon is in use without a redemption | I5 | coupon in use
    coupon {COUPON_B}: in use by order {C}, and no redemption is live
    UPDATE coupons SET order_id = '{C}', redeem_time = now(), redeem_request_id = 'r'
    WHERE coupon_id = '{COUPON_B}'
a redeemed coupon is marked as free | I5 | coupon in use
    coupon {COUPON_A}: not in use, and its redemption
    UPDATE coupons SET order_id = NULL, redeem_time = NULL, redeem_request_id = NULL
a coupon is in use by another order than its redemption | I5 | coupon in use
    coupon {COUPON_A}: in use by order {C} under
    UPDATE coupons SET order_id = '{C}' WHERE coupon_id = '{COUPON_A}'
a coupon is redeemed for a cancelled order | I5 | redemption
    saga {NOBODY} of bob: redemption of KRW 1, and no such saga
    {redemption("bob", NOBODY, COUPON_B, order_id=F, order_amount=750, discount=1)}
    UPDATE coupons SET order_id = '{F}', redeem_time = now(),
    redeem_request_id = '{NOBODY}:redeem_coupon' WHERE coupon_id = '{COUPON_B}'
a restored coupon is live again | I5 I8 | redemption
    order {B}: cancelled, and the redemption of KRW 300 is not undone
    UPDATE redemptions SET restore_time = NULL, restore_request_id = NULL
    WHERE coupon_id = '{COUPON_B}'
a discount is not the order's | I5 | redemption
    order {A}: redemption with amount 501 and not 500
    UPDATE redemptions SET discount_minor = 501 WHERE coupon_id = '{COUPON_A}'
a discount is above its campaign's terms | I5 | discount and the campaign's terms
    coupon {COUPON_A}: 500 off 5000, and by the campaign's terms 400
    UPDATE campaigns SET max_discount_minor = 400
a discount is below its campaign's terms | I5 | discount and the campaign's terms
    coupon {COUPON_B}: 300 off 2000, and by the campaign's terms 400
    UPDATE campaigns SET percent_discount = 20
a discount is on too small an order | I5 | discount and the campaign's terms
    coupon {COUPON_B}: 300 off 2000, and by the campaign's terms none
    UPDATE campaigns SET min_order_minor = 2001
a redemption is answered with another discount | I8 | redemption and its answer
    redeemed is coupon {COUPON_A} by order {A} with KRW 500
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{discount,amount_minor}}', '1')::text
    WHERE request_id = '{PAY_A}:redeem_coupon'
a paid order's redemption is undone | I5 I8 | redemption
    order {A}: KRW 500 recorded, and the redemption is undone
    UPDATE redemptions SET restore_time = now(), restore_request_id = 'r'
    WHERE coupon_id = '{COUPON_A}'
an issued coupon has no answer | I8 | issued coupon and its answer
    IssueCoupon issue-1 of ann: coupon {COUPON_A} is issued, and not answered
    DELETE FROM answers WHERE method = 'IssueCoupon' AND scope = 'ann'
a redemption is answered and did not happen | I8 | redemption and its answer
    RedeemCoupon lost of ann: answered, and no coupon was redeemed
    {answer("RedeemCoupon", "ann", "lost", {})}
""",
    "payment": f"""
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
    UPDATE heartbeat SET beat_time = beat_time + interval '1 hour'
a charge of a payment that does not move | I3 I7 | charge
    payment {UNKNOWN} key key-35: UNKNOWN, 60 at the gateway, and nothing moves
    UPDATE heartbeat SET beat_time = beat_time + interval '1 hour'
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
""",
    "gateway": f"""
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
""",
}
"""By service. Each: its name, the invariants that it breaks, and the check that reports it; a part
of the text that reports it; the change, as SQL."""


@dataclass(frozen=True)
class Breach:
    where: str
    name: str
    invariants: set[str]
    check: str
    reported: str
    sql: str

    @property
    def tables(self) -> set[str]:
        """The tables that it changes."""
        return set(re.findall(r"(?:UPDATE|INSERT INTO|DELETE FROM) (\w+)", self.sql))


def breaches() -> Iterator[Breach]:
    for where, text in BREACHES.items():
        for breach in re.split(r"^(?=.+ \| I\d)", text, flags=re.MULTILINE)[1:]:
            head, reported, sql = breach.split("\n", 2)
            name, invariants, check = head.split(" | ")
            yield Breach(where, name, set(invariants.split()), check, reported.strip(), sql)


@pytest.mark.parametrize(
    "breach", [*breaches()], ids=lambda breach: f"{breach.where}: {breach.name}"
)
async def test_audit_reports_breach(books: Books, breach: Breach) -> None:
    found = await books.pass_with(breach.where, breach.sql)
    assert breach.invariants <= {invariant for invariant, _ in found.differences}, found.differences
    reports = [
        difference.text
        for (invariant, key), difference in found.differences.items()
        if invariant in breach.invariants and key.startswith(f"{breach.check}: ")
    ]
    assert any(breach.reported in text for text in reports), found.differences


def test_every_invariant_has_a_breach() -> None:
    assert set[str]().union(*(breach.invariants for breach in breaches())) == set(INVARIANTS)


def tables_in(sql: str) -> set[str]:
    return set(re.findall(r"(?:FROM|JOIN) (\w+)", sql))


TABLES: Final = {
    "balance": set(balance_service.tables.metadata.tables),
    "coupon": set(coupon_service.tables.metadata.tables),
    "order": set(order_service.tables.metadata.tables),
    "payment": set(payment_service.tables.metadata.tables),
    "gateway": {"payments", "cancels", "answers"},
}


def reads() -> Iterator[tuple[str, str, str]]:
    """Every check with each table that it reads, as (check, service, table)."""
    statements = [
        (check.name, service, check.sql)
        for service, checks in SERVICES.items()
        for check in checks.checks
    ]
    for one in PARTICIPANTS:
        statements += [(one.noun, "order", one.claims), (one.noun, one.service, one.effects)]
    statements += [("charge", "payment", PAYMENTS), ("charge", "gateway", RECORDS)]
    for check, service, sql in statements:
        for table in tables_in(sql) & TABLES[service]:
            yield check, service, table


def test_every_check_has_a_breach_in_every_table_that_it_reads() -> None:
    planted = {(one.check, one.where, table) for one in breaches() for table in one.tables}
    missing = set(reads()) - planted
    assert not missing
