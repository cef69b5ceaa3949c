"""Every invariant is broken in otherwise clean books, and the audit must report the breach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from deploy.audit.audit import Limits, audit
from deploy.audit.report import INVARIANTS, as_text
from tests.integration.audit.books import (
    CAMPAIGN,
    CANCEL_B,
    COUPON_A,
    COUPON_B,
    DIRECT,
    PAID_A,
    PAID_B,
    PAY_A,
    PAY_B,
    PAY_C,
    PAY_D,
    PRODUCT,
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
BREACHES: Final = {
    "balance": f"""
a balance is changed | I1 I2 I3
    account of ann in KRW: balance 7001, sum of its entries 7000
    UPDATE accounts SET available_minor = available_minor + 1 WHERE user_id = 'ann'
a balance is negative | I1 I2 I3
    account of eve in KRW: balance -1
    ALTER TABLE accounts DROP CONSTRAINT accounts_available_not_negative;
    UPDATE accounts SET available_minor = -1 WHERE user_id = 'eve'
money moves between two accounts | I2
    account of bob in KRW: balance 4649, sum of its entries 4650
    UPDATE accounts SET available_minor = available_minor
    + CASE user_id WHEN 'ann' THEN 1 ELSE -1 END WHERE user_id <> 'eve'
the last entry is deleted | I1 I2 I3 I8
    version 5, last entry 4
    DELETE FROM ledger_entries WHERE user_id = 'bob' AND sequence = 5
an entry in the middle is deleted | I2 I8
    4 entries numbered 1 to 5
    DELETE FROM ledger_entries WHERE user_id = 'bob' AND sequence = 3
an account is deleted | I1 I2 I3
    account of bob in KRW: has entries and does not exist
    DELETE FROM accounts WHERE user_id = 'bob'
a running sum is wrong | I2
    entry 2 (-1000) has 1 as the balance after it, and 5000 as the balance before it
    UPDATE ledger_entries SET balance_after_minor = 1 WHERE entry_id = '{uid(202)}'
a charge is larger than its balance | I1 I2 I3 I8
    KRW: balances add up to 11650, entries to 21650 (25000 charged, 3350 spent)
    UPDATE ledger_entries SET amount_minor = 20000 WHERE entry_id = '{uid(101)}'
a refund is larger than its deduction | I2
    deduction {PAY_C}:deduct_balance was -400 in KRW
    UPDATE ledger_entries SET amount_minor = 500 WHERE entry_id = '{uid(104)}'
a refund has no deduction | I2 I8
    deduction no-such is not in the ledger
    UPDATE ledger_entries SET refund_of = 'no-such' WHERE kind = 'REFUND'
a deduction is refunded twice | I2
    {PAY_C}:deduct_balance is refunded 2 times
    DROP INDEX ledger_entries_refund_once;
    {ledger_entry("ann", (NOBODY, 5, 400, 0), "REFUND", "again", C, f"{PAY_C}:deduct_balance")}
a deduction belongs to no saga | I3
    saga {NOBODY} of ann: deduction of KRW 5, and no such saga
    {ledger_entry("ann", NEW, "DEDUCT", f"{NOBODY}:deduct_balance", A, None)}
    {answer("DeductBalance", "ann", f"{NOBODY}:deduct_balance", entry_body(NEW))}
    UPDATE accounts SET available_minor = 6995, version = 5 WHERE user_id = 'ann'
a deduction came after its cancellation | I3 I8
    order {C}: deduction of KRW 400, and this attempt paid nothing
    DELETE FROM answers WHERE request_id = '{PAY_C}:deduct_balance:undo';
    DELETE FROM ledger_entries WHERE kind = 'REFUND' AND user_id = 'ann';
    UPDATE accounts SET available_minor = 6600, version = 3 WHERE user_id = 'ann'
a deduction is answered and not entered | I8
    DEDUCT lost of ann: answered, and not in the ledger
    {answer("DeductBalance", "ann", "lost", {"entry_id": NOBODY})}
a charge is answered with another amount | I8
    CHARGE charge-1 of ann: answered as entry 1 with 1, in the ledger as 1 with 10000
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{amount_minor}}', '1')::text
    WHERE method = 'ChargeBalance' AND scope = 'ann'
a refund is answered and not entered | I8
    answered with entry gone, which is not in the ledger
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{entry_id}}', '"gone"')::text
    WHERE method = 'RefundDeduction' AND scope = 'ann'
an entry has no answer | I8
    CHARGE charge-1 of ann: in the ledger with 10000, and not answered
    DELETE FROM answers WHERE method = 'ChargeBalance' AND scope = 'ann'
a refunded deduction is not cancelled | I8
    refunded, and its request is answered, not cancelled
    UPDATE answers SET state = 'ANSWERED', body = 'null' WHERE request_id = '{PAY_C}:deduct_balance'
""",
    "order": f"""
a paid order's deduction is another amount | I3
    order {A}: deduction with amount 3000 and not 2900
    UPDATE orders SET paid_by_balance_minor = 2900, discount_minor = 600 WHERE order_id = '{A}'
a reserved count is dropped | I4
    product {PRODUCT}: 0 reserved, 5 in unpaid orders
    UPDATE products SET reserved = 0
a sold count is too high | I4
    product {PRODUCT}: 21 sold, 20 in paid orders
    UPDATE products SET sold = sold + 1
more is sold than was stocked | I4
    product {PRODUCT}: 24 stocked, 5 reserved, 20 sold
    ALTER TABLE products DROP CONSTRAINT products_stock_not_oversold;
    UPDATE products SET stocked = 24
a product is gone | I4
    product {PRODUCT}: is ordered and does not exist
    DELETE FROM products
a paid order does not add up | I6 I5
    order {A} (PAID): lines 5000, subtotal 5000, discount 499
    ALTER TABLE orders DROP CONSTRAINT orders_paid_in_full;
    UPDATE orders SET discount_minor = 499 WHERE order_id = '{A}'
a cancelled order does not add up | I3 I6
    order {B} (CANCELLED): lines 2000, subtotal 2000, discount 300, by balance 999
    UPDATE orders SET paid_by_balance_minor = 999 WHERE order_id = '{B}'
the lines are not the subtotal | I6
    order {E} (EXPIRED): lines 7, subtotal 1750
    UPDATE order_items SET unit_price_minor = 1 WHERE order_id = '{E}'
an order is paid without any effect | I3 I5 I6 I7
    order {NOBODY}: KRW 100 recorded, and there is no payment
    {order_row(NOBODY, "ann", 2, "PAID", (100, 300, 100), coupon=COUPON_B, payment=NOBODY)}
    UPDATE products SET sold = sold + 2
an order made an illegal transition | I4 I6
    order {D} is EXPIRED, with 0 payments completed, 1 under way
    UPDATE orders SET state = 'EXPIRED' WHERE order_id = '{D}'
an order was paid twice | I3 I5 I6 I7 I8
    order {A} is PAID, with 2 payments completed
    {saga(NOBODY, A, "ann", "COMPLETED", "redeem_coupon DONE, complete_order DONE")}
a cancelled order has a cancellation under way | I6
    order {B} is CANCELLED, with 1 payments completed, 0 under way, 0 cancellations
    UPDATE sagas SET state = 'RUNNING' WHERE saga_id = '{CANCEL_B}'
an ended saga left a step begun | I6
    saga {PAY_C} (COMPENSATED) of order {C}: steps redeem_coupon SKIPPED, deduct_balance BEGUN
    UPDATE sagas SET steps = jsonb_set(steps, '{{1,state}}', '"BEGUN"') WHERE saga_id = '{PAY_C}'
a saga has no order | I6
    there is no such order
    {saga(NOBODY, uid(98), "ann", "RUNNING", "complete_order PENDING")}
an order is answered and does not exist | I8
    CreateOrder lost of ann: answered with order {NOBODY}, which does not exist
    {answer("CreateOrder", "ann", "lost", {"order_id": NOBODY})}
an order is answered with another amount | I8
    CreateOrder create-{E} of ann: answered with order {E} over 1, created is {E} over 1750
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{subtotal_minor}}', '1')::text
    WHERE request_id = 'create-{E}'
a payment is answered with other amounts | I8
    by balance 1, by gateway 1500, and order {A} has 500, 3000, 1500
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{paid_by_balance_minor}}', '1')::text
    WHERE request_id = 'pay-{PAY_A}'
an order was paid after its expiry | I6
    saga {PAY_A} began to pay it at
    UPDATE orders SET expire_time = now() - interval '1 hour' WHERE order_id = '{A}'
an order has no answer | I8
    CreateOrder create-{E} of ann: order {E} exists, and is not answered
    DELETE FROM answers WHERE request_id = 'create-{E}'
a payment is answered and is under way | I8
    PayOrder pay-{PAY_D} of bob: answered, and its saga {PAY_D} is RUNNING
    {answer("PayOrder", "bob", f"pay-{PAY_D}", {"order_id": D})}
a refused attempt is not answered | I8
    PayOrder pay-{PAY_C} of ann: not answered, and its saga {PAY_C} is COMPENSATED
    DELETE FROM answers WHERE request_id = 'pay-{PAY_C}'
a cancellation is answered and did not happen | I8
    CancelOrder lost of ann: answered, and order {A} is PAID
    {answer("CancelOrder", "ann", "lost", {"order_id": A})}
an order has another payment's id | I7
    order {A}: payment with payment_id {PAID_A} and not {NOBODY}
    UPDATE orders SET payment_id = '{NOBODY}' WHERE order_id = '{A}'
""",
    "coupon": f"""
more coupons are issued than the quantity | I5
    campaign {CAMPAIGN}: issued 2 of 1
    ALTER TABLE campaigns DROP CONSTRAINT campaigns_issued_within_quantity;
    UPDATE campaigns SET quantity = 1
a coupon is gone | I5 I8
    campaign {CAMPAIGN}: issued 2, 1 coupons
    DELETE FROM coupons WHERE coupon_id = '{COUPON_B}'
an issue number is missing | I5 I8
    campaign {CAMPAIGN}: 2 coupons with 2 numbers from 1 to 3
    UPDATE coupons SET issue_number = 3 WHERE coupon_id = '{COUPON_B}'
a user has two coupons of a campaign | I5 I8
    campaign {CAMPAIGN}: 2 coupons of 1 users
    ALTER TABLE coupons DROP CONSTRAINT coupons_user_once;
    UPDATE coupons SET user_id = 'ann' WHERE coupon_id = '{COUPON_B}'
a coupon is in use without a redemption | I5
    coupon {COUPON_B}: in use by order {C}, and no redemption is live
    UPDATE coupons SET order_id = '{C}', redeem_time = now(), redeem_request_id = 'r'
    WHERE coupon_id = '{COUPON_B}'
a redeemed coupon is marked as free | I5
    coupon {COUPON_A}: not in use, and its redemption
    UPDATE coupons SET order_id = NULL, redeem_time = NULL, redeem_request_id = NULL
a coupon is in use by another order than its redemption | I5
    coupon {COUPON_A}: in use by order {C} under
    UPDATE coupons SET order_id = '{C}' WHERE coupon_id = '{COUPON_A}'
a coupon is redeemed for a cancelled order | I5
    saga {NOBODY} of bob: redemption of KRW 1, and no such saga
    {redemption("bob", NOBODY, COUPON_B, order_id=F, order_amount=750, discount=1)}
    UPDATE coupons SET order_id = '{F}', redeem_time = now(),
    redeem_request_id = '{NOBODY}:redeem_coupon' WHERE coupon_id = '{COUPON_B}'
a restored coupon is live again | I5 I8
    order {B}: cancelled, and the redemption of KRW 300 is not undone
    UPDATE redemptions SET restore_time = NULL, restore_request_id = NULL
    WHERE coupon_id = '{COUPON_B}'
a discount is not the order's | I5
    order {A}: redemption with amount 501 and not 500
    UPDATE redemptions SET discount_minor = 501 WHERE coupon_id = '{COUPON_A}'
a discount is above its campaign's terms | I5
    coupon {COUPON_A}: 500 off 5000, and by the campaign's terms 400
    UPDATE campaigns SET max_discount_minor = 400
a discount is below its campaign's terms | I5
    coupon {COUPON_B}: 300 off 2000, and by the campaign's terms 400
    UPDATE campaigns SET percent_discount = 20
a discount is on too small an order | I5
    coupon {COUPON_B}: 300 off 2000, and by the campaign's terms none
    UPDATE campaigns SET min_order_minor = 2001
a redemption is answered with another discount | I8
    answered with {{"amount_minor": 1, "currency_code": "KRW"}}, redeemed with KRW 500
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{discount,amount_minor}}', '1')::text
    WHERE request_id = '{PAY_A}:redeem_coupon'
a paid order's redemption is undone | I5 I8
    order {A}: KRW 500 recorded, and the redemption is undone
    UPDATE redemptions SET restore_time = now(), restore_request_id = 'r'
    WHERE coupon_id = '{COUPON_A}'
an issued coupon has no answer | I8
    IssueCoupon issue-1 of ann: coupon {COUPON_A} is issued, and not answered
    DELETE FROM answers WHERE method = 'IssueCoupon' AND scope = 'ann'
a redemption is answered and did not happen | I8
    RedeemCoupon lost of ann: answered, and no coupon was redeemed
    {answer("RedeemCoupon", "ann", "lost", {})}
""",
    "payment": f"""
a payment belongs to no saga | I3 I7 I8
    saga {NOBODY} of bob: payment of KRW 900, and no such saga
    UPDATE payments SET request_id = '{NOBODY}:confirm_payment' WHERE payment_id = '{DIRECT}'
an order's payment is gone | I3 I7 I8
    order {A}: KRW 1,500 recorded, and there is no payment
    DELETE FROM payments WHERE payment_id = '{PAID_A}'
a paid order's payment is not decided | I7 I8
    order {A}: payment with state UNKNOWN and not CONFIRMED or CANCELLED
    UPDATE payments SET state = 'UNKNOWN', gateway_transaction_id = NULL, due_time = now()
    WHERE payment_id = '{PAID_A}'
a payment is answered and not confirmed | I8
    ConfirmPayment lost of ann: answered, and its payment does not exist
    {answer("ConfirmPayment", "ann", "lost", {"payment_id": NOBODY})}
a payment is answered with another amount | I8
    ConfirmPayment direct-1 of bob: answered, and its payment {DIRECT} is CONFIRMED over 900
    UPDATE answers SET body = jsonb_set(body::jsonb, '{{amount,amount_minor}}', '1')::text
    WHERE request_id = 'direct-1'
a payment has a transaction that is not its own | I3 I7 I8
    payment {DIRECT} key key-34: transaction t key-31, at the gateway t key-34
    UPDATE payments SET gateway_transaction_id = 't key-31' WHERE payment_id = '{DIRECT}'
a cancellation is answered and did not happen | I8
    CancelPayment lost of bob: answered with payment {DIRECT} as CANCELLED over 900, and it
    {
        answer(
            "CancelPayment",
            "bob",
            "lost",
            payment_body(DIRECT, 900, "t key-34") | {"state": "CANCELLED"},
        )
    }
a confirmed payment is cancelled by its answer | I8
    ConfirmPayment direct-1 of bob: cancelled, and its payment {DIRECT} is CONFIRMED
    UPDATE answers SET state = 'CANCELLED', body = NULL WHERE request_id = 'direct-1'
a confirmed payment has no answer | I8
    ConfirmPayment direct-1 of bob: not answered, and its payment {DIRECT} is CONFIRMED
    DELETE FROM answers WHERE request_id = 'direct-1'
a second payment of the order was captured | I3 I7
    saga {PAY_B} of ann: payment of KRW 5, and no such saga
    {payment_row(NOBODY, "ann", f"{PAY_B}:confirm_payment", (A, 5), "CONFIRMED")}
""",
    "gateway": f"""
the gateway has captured without a payment | I3 I7
    key extra: 5 captured, and there is no such payment
    {gateway_charge("extra", "x", 5, 5)}
the gateway has captured another amount | I3 I7
    CONFIRMED over 1,500, at the gateway 1,600 captured and 0 refunded
    UPDATE payments SET total_amount = 1600 WHERE order_id = '{A}'
the gateway has captured another currency | I3 I7
    payment {PAID_A} key key-31: at the gateway for USD and not KRW
    UPDATE payments SET currency = 'USD' WHERE order_id = '{A}'
the gateway has captured for another order | I3 I7
    at the gateway for {C} and not {A}
    UPDATE payments SET order_id = '{C}' WHERE order_id = '{A}'
the gateway has lost a capture | I3 I7
    payment {PAID_A} key key-31: CONFIRMED over 1,500, at the gateway 0 captured
    DELETE FROM payments WHERE order_id = '{A}'
the gateway has not refunded | I3 I7
    payment {PAID_B} key key-32: CANCELLED over 700, at the gateway 700 captured and 0
    DELETE FROM cancels
the gateway has charged a declined card | I3 I7
    DECLINED over 600, at the gateway 600 captured
    UPDATE payments SET status = 'DONE', approved_at = 'then' WHERE status = 'ABORTED'
""",
}
"""By service. Each: its name and the invariants that it breaks; a part of the text that reports it;
the change, as SQL."""


@dataclass(frozen=True)
class Breach:
    where: str
    name: str
    invariants: set[str]
    reported: str
    sql: str


def breaches() -> Iterator[Breach]:
    for where, text in BREACHES.items():
        for breach in re.split(r"^(?=.+ \| I\d)", text, flags=re.MULTILINE)[1:]:
            head, reported, sql = breach.split("\n", 2)
            name, invariants = head.split(" | ")
            yield Breach(where, name, set(invariants.split()), reported.strip(), sql)


@pytest.mark.parametrize("breach", [*breaches()], ids=lambda breach: breach.name)
async def test_audit_reports_breach(books: Books, breach: Breach) -> None:
    books.change(breach.where, breach.sql)
    report = await audit(books.sources, Limits(settle_s=0.0))
    broken = [line for line in report.lines if not line.holds]
    assert breach.invariants <= {line.invariant for line in broken}, as_text(report)
    named = {line.invariant for line in broken if breach.reported in "\n".join(line.differences)}
    assert named & breach.invariants, as_text(report)


def test_every_invariant_has_a_breach() -> None:
    assert set[str]().union(*(breach.invariants for breach in breaches())) == set(INVARIANTS)
