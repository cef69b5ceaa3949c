"""Every invariant is broken in otherwise clean books, and the audit must report the breach."""

from __future__ import annotations

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
    payment_row,
    redemption,
    saga,
    uid,
)
from tests.integration.audit.conftest import Books

NOBODY = uid(99)
SECOND_REFUND = ledger_entry(
    "ann", (NOBODY, 5, 400, 0), "REFUND", "again", C, f"{PAY_C}:deduct_balance"
)
_ENTRY = (NOBODY, 5, -5, 6_995)
DEDUCTION_OF_NO_SAGA = (
    ledger_entry("ann", _ENTRY, "DEDUCT", f"{NOBODY}:deduct_balance", A, None)
    + answer("DeductBalance", "ann", f"{NOBODY}:deduct_balance", entry_body(_ENTRY))
    + "UPDATE accounts SET available_minor = 6995, version = 5 WHERE user_id = 'ann'"
)


@dataclass(frozen=True)
class Breach:
    """A change, the invariants that it breaks, and a part of the text that reports it."""

    sql: str
    invariants: str
    text: str


BREACHES: Final[dict[str, dict[str, Breach]]] = {
    "balance": {
        "a balance is changed": Breach(
            "UPDATE accounts SET available_minor = available_minor + 1 WHERE user_id = 'ann'",
            "I1 I2 I3",
            "account of ann in KRW: balance 7001, sum of its entries 7000",
        ),
        "a balance is negative": Breach(
            "ALTER TABLE accounts DROP CONSTRAINT accounts_available_not_negative;"
            "UPDATE accounts SET available_minor = -1 WHERE user_id = 'eve'",
            "I1 I2 I3",
            "account of eve in KRW: balance -1",
        ),
        "money moves between two accounts": Breach(
            "UPDATE accounts SET available_minor = available_minor"
            " + CASE user_id WHEN 'ann' THEN 1 ELSE -1 END WHERE user_id <> 'eve'",
            "I2",
            "account of bob in KRW: balance 4649, sum of its entries 4650",
        ),
        "the last entry is deleted": Breach(
            "DELETE FROM ledger_entries WHERE user_id = 'bob' AND sequence = 5",
            "I1 I2 I3 I8",
            "version 5, last entry 4",
        ),
        "an entry in the middle is deleted": Breach(
            "DELETE FROM ledger_entries WHERE user_id = 'bob' AND sequence = 3",
            "I2 I8",
            "4 entries numbered 1 to 5",
        ),
        "an account is deleted": Breach(
            "DELETE FROM accounts WHERE user_id = 'bob'",
            "I1 I2 I3",
            "account of bob in KRW: has entries and does not exist",
        ),
        "a running sum is wrong": Breach(
            f"UPDATE ledger_entries SET balance_after_minor = 1 WHERE entry_id = '{uid(202)}'",
            "I2",
            "entry 2 (-1000) has 1 as the balance after it, and 5000 as the balance before it",
        ),
        "a charge is larger than its balance": Breach(
            f"UPDATE ledger_entries SET amount_minor = 20000 WHERE entry_id = '{uid(101)}'",
            "I1 I2 I3 I8",
            "KRW: balances add up to 11650, entries to 21650 (25000 charged, 3350 spent)",
        ),
        "a refund is larger than its deduction": Breach(
            f"UPDATE ledger_entries SET amount_minor = 500 WHERE entry_id = '{uid(104)}'",
            "I2",
            f"deduction {PAY_C}:deduct_balance was -400 in KRW",
        ),
        "a refund has no deduction": Breach(
            "UPDATE ledger_entries SET refund_of = 'no-such' WHERE kind = 'REFUND'",
            "I2 I8",
            "deduction no-such is not in the ledger",
        ),
        "a deduction is refunded twice": Breach(
            "DROP INDEX ledger_entries_refund_once;" + SECOND_REFUND,
            "I2",
            f"{PAY_C}:deduct_balance is refunded 2 times",
        ),
        "a deduction belongs to no saga": Breach(
            DEDUCTION_OF_NO_SAGA,
            "I3",
            f"saga {NOBODY} of ann: deduction of KRW 5, and no such saga",
        ),
        "a deduction came after its cancellation": Breach(
            f"DELETE FROM answers WHERE request_id = '{PAY_C}:deduct_balance:undo';"
            f"DELETE FROM ledger_entries WHERE kind = 'REFUND' AND user_id = 'ann';"
            "UPDATE accounts SET available_minor = 6600, version = 3 WHERE user_id = 'ann'",
            "I3 I8",
            f"order {C}: deduction of KRW 400, and this attempt paid nothing",
        ),
        "a deduction is answered and not entered": Breach(
            answer("DeductBalance", "ann", "lost", {"entry_id": NOBODY}),
            "I8",
            "DEDUCT lost of ann: answered, and not in the ledger",
        ),
        "a charge is answered with another amount": Breach(
            "UPDATE answers SET body = jsonb_set(body::jsonb, '{amount_minor}', '1')::text"
            " WHERE method = 'ChargeBalance' AND scope = 'ann'",
            "I8",
            "CHARGE charge-1 of ann: answered as entry 1 with 1, in the ledger as 1 with 10000",
        ),
        "a refund is answered and not entered": Breach(
            "UPDATE answers SET body = jsonb_set(body::jsonb, '{entry_id}', '\"gone\"')::text"
            " WHERE method = 'RefundDeduction' AND scope = 'ann'",
            "I8",
            "answered with entry gone, which is not in the ledger",
        ),
        "an entry has no answer": Breach(
            "DELETE FROM answers WHERE method = 'ChargeBalance' AND scope = 'ann'",
            "I8",
            "CHARGE charge-1 of ann: in the ledger with 10000, and not answered",
        ),
        "a refunded deduction is not cancelled": Breach(
            "UPDATE answers SET state = 'ANSWERED', body = 'null'"
            f" WHERE request_id = '{PAY_C}:deduct_balance'",
            "I8",
            "refunded, and its request is answered, not cancelled",
        ),
    },
    "order": {
        "a paid order's deduction is another amount": Breach(
            f"UPDATE orders SET paid_by_balance_minor = 2900, discount_minor = 600"
            f" WHERE order_id = '{A}'",
            "I3",
            f"order {A}: deduction with amount 3000 and not 2900",
        ),
        "a reserved count is dropped": Breach(
            "UPDATE products SET reserved = 0",
            "I4",
            f"product {PRODUCT}: 0 reserved, 5 in unpaid orders",
        ),
        "a sold count is too high": Breach(
            "UPDATE products SET sold = sold + 1",
            "I4",
            f"product {PRODUCT}: 21 sold, 20 in paid orders",
        ),
        "more is sold than was stocked": Breach(
            "ALTER TABLE products DROP CONSTRAINT products_stock_not_oversold;"
            "UPDATE products SET stocked = 24",
            "I4",
            f"product {PRODUCT}: 24 stocked, 5 reserved, 20 sold",
        ),
        "a product is gone": Breach(
            "DELETE FROM products", "I4", f"product {PRODUCT}: is ordered and does not exist"
        ),
        "a paid order does not add up": Breach(
            "ALTER TABLE orders DROP CONSTRAINT orders_paid_in_full;"
            f"UPDATE orders SET discount_minor = 499 WHERE order_id = '{A}'",
            "I6 I5",
            f"order {A} (PAID): lines 5000, subtotal 5000, discount 499",
        ),
        "a cancelled order does not add up": Breach(
            f"UPDATE orders SET paid_by_balance_minor = 999 WHERE order_id = '{B}'",
            "I3 I6",
            f"order {B} (CANCELLED): lines 2000, subtotal 2000, discount 300, by balance 999",
        ),
        "the lines are not the subtotal": Breach(
            f"UPDATE order_items SET unit_price_minor = 1 WHERE order_id = '{E}'",
            "I6",
            f"order {E} (EXPIRED): lines 7, subtotal 1750",
        ),
        "an order is paid without any effect": Breach(
            order_row(NOBODY, "ann", 2, "PAID", (100, 300, 100), coupon=COUPON_B, payment=NOBODY)
            + "UPDATE products SET sold = sold + 2",
            "I3 I5 I6 I7",
            f"order {NOBODY}: KRW 100 recorded, and there is no payment",
        ),
        "an order made an illegal transition": Breach(
            f"UPDATE orders SET state = 'EXPIRED' WHERE order_id = '{D}'",
            "I4 I6",
            f"order {D} is EXPIRED, with 0 payments completed, 1 under way",
        ),
        "an order was paid twice": Breach(
            saga(NOBODY, A, "ann", "COMPLETED", "redeem_coupon DONE, complete_order DONE"),
            "I3 I5 I6 I7 I8",
            f"order {A} is PAID, with 2 payments completed",
        ),
        "a cancelled order has a cancellation under way": Breach(
            f"UPDATE sagas SET state = 'RUNNING' WHERE saga_id = '{CANCEL_B}'",
            "I6",
            f"order {B} is CANCELLED, with 1 payments completed, 0 under way, 0 cancellations",
        ),
        "an ended saga left a step begun": Breach(
            "UPDATE sagas SET steps = jsonb_set(steps, '{1,state}', '\"BEGUN\"')"
            f" WHERE saga_id = '{PAY_C}'",
            "I6",
            f"saga {PAY_C} (COMPENSATED) of order {C}: steps redeem_coupon SKIPPED,"
            " deduct_balance BEGUN",
        ),
        "a saga has no order": Breach(
            saga(NOBODY, uid(98), "ann", "RUNNING", "complete_order PENDING"),
            "I6",
            "there is no such order",
        ),
        "an order is answered and does not exist": Breach(
            answer("CreateOrder", "ann", "lost", {"order_id": NOBODY}),
            "I8",
            f"CreateOrder lost of ann: answered with order {NOBODY}, which does not exist",
        ),
        "an order has no answer": Breach(
            f"DELETE FROM answers WHERE request_id = 'create-{E}'",
            "I8",
            f"CreateOrder create-{E} of ann: order {E} exists, and is not answered",
        ),
        "a payment is answered and is under way": Breach(
            answer("PayOrder", "bob", f"pay-{PAY_D}", {"order_id": D}),
            "I8",
            f"PayOrder pay-{PAY_D} of bob: answered, and its saga {PAY_D} is RUNNING",
        ),
        "a refused attempt is not answered": Breach(
            f"DELETE FROM answers WHERE request_id = 'pay-{PAY_C}'",
            "I8",
            f"PayOrder pay-{PAY_C} of ann: not answered, and its saga {PAY_C} is COMPENSATED",
        ),
        "a cancellation is answered and did not happen": Breach(
            answer("CancelOrder", "ann", "lost", {"order_id": A}),
            "I8",
            f"CancelOrder lost of ann: answered, and order {A} is PAID",
        ),
        "an order has another payment's id": Breach(
            f"UPDATE orders SET payment_id = '{NOBODY}' WHERE order_id = '{A}'",
            "I7",
            f"order {A}: payment with payment_id {PAID_A} and not {NOBODY}",
        ),
    },
    "coupon": {
        "more coupons are issued than the quantity": Breach(
            "ALTER TABLE campaigns DROP CONSTRAINT campaigns_issued_within_quantity;"
            "UPDATE campaigns SET quantity = 1",
            "I5",
            f"campaign {CAMPAIGN}: issued 2 of 1",
        ),
        "a coupon is gone": Breach(
            f"DELETE FROM coupons WHERE coupon_id = '{COUPON_B}'",
            "I5 I8",
            f"campaign {CAMPAIGN}: issued 2, 1 coupons",
        ),
        "an issue number is missing": Breach(
            f"UPDATE coupons SET issue_number = 3 WHERE coupon_id = '{COUPON_B}'",
            "I5 I8",
            f"campaign {CAMPAIGN}: 2 coupons with 2 numbers from 1 to 3",
        ),
        "a user has two coupons of a campaign": Breach(
            "ALTER TABLE coupons DROP CONSTRAINT coupons_user_once;"
            f"UPDATE coupons SET user_id = 'ann' WHERE coupon_id = '{COUPON_B}'",
            "I5 I8",
            f"campaign {CAMPAIGN}: 2 coupons of 1 users",
        ),
        "a coupon is in use without a redemption": Breach(
            f"UPDATE coupons SET order_id = '{C}', redeem_time = now(),"
            f" redeem_request_id = 'r' WHERE coupon_id = '{COUPON_B}'",
            "I5",
            f"coupon {COUPON_B}: in use by order {C}, and no redemption is live",
        ),
        "a redeemed coupon is marked as free": Breach(
            "UPDATE coupons SET order_id = NULL, redeem_time = NULL, redeem_request_id = NULL",
            "I5",
            f"coupon {COUPON_A}: not in use, and its redemption",
        ),
        "a coupon is in use by another order than its redemption": Breach(
            f"UPDATE coupons SET order_id = '{C}' WHERE coupon_id = '{COUPON_A}'",
            "I5",
            f"coupon {COUPON_A}: in use by order {C} under",
        ),
        "a coupon is redeemed for a cancelled order": Breach(
            redemption("bob", PAY_D, COUPON_B, order_id=F, order_amount=750, discount=1).replace(
                PAY_D, NOBODY
            )
            + f"UPDATE coupons SET order_id = '{F}', redeem_time = now(),"
            f" redeem_request_id = '{NOBODY}:redeem_coupon' WHERE coupon_id = '{COUPON_B}'",
            "I5",
            f"saga {NOBODY} of bob: redemption of KRW 1, and no such saga",
        ),
        "a restored coupon is live again": Breach(
            "UPDATE redemptions SET restore_time = NULL, restore_request_id = NULL"
            f" WHERE coupon_id = '{COUPON_B}'",
            "I5 I8",
            f"order {B}: cancelled, and the redemption of KRW 300 is not undone",
        ),
        "a discount is not the order's": Breach(
            f"UPDATE redemptions SET discount_minor = 501 WHERE coupon_id = '{COUPON_A}'",
            "I5",
            f"order {A}: redemption with amount 501 and not 500",
        ),
        "a paid order's redemption is undone": Breach(
            "UPDATE redemptions SET restore_time = now(), restore_request_id = 'r'"
            f" WHERE coupon_id = '{COUPON_A}'",
            "I5 I8",
            f"order {A}: KRW 500 recorded, and the redemption is undone",
        ),
        "an issued coupon has no answer": Breach(
            "DELETE FROM answers WHERE method = 'IssueCoupon' AND scope = 'ann'",
            "I8",
            f"IssueCoupon issue-1 of ann: coupon {COUPON_A} is issued, and not answered",
        ),
        "a redemption is answered and did not happen": Breach(
            answer("RedeemCoupon", "ann", "lost", {}),
            "I8",
            "RedeemCoupon lost of ann: answered, and no coupon was redeemed",
        ),
    },
    "payment": {
        "a payment belongs to no saga": Breach(
            f"UPDATE payments SET request_id = '{NOBODY}:confirm_payment'"
            f" WHERE payment_id = '{DIRECT}'",
            "I3 I7 I8",
            f"saga {NOBODY} of bob: payment of KRW 900, and no such saga",
        ),
        "an order's payment is gone": Breach(
            f"DELETE FROM payments WHERE payment_id = '{PAID_A}'",
            "I3 I7 I8",
            f"order {A}: KRW 1,500 recorded, and there is no payment",
        ),
        "a paid order's payment is not decided": Breach(
            "UPDATE payments SET state = 'UNKNOWN', gateway_transaction_id = NULL, due_time = now()"
            f" WHERE payment_id = '{PAID_A}'",
            "I7 I8",
            f"order {A}: payment with state UNKNOWN and not CONFIRMED or CANCELLED",
        ),
        "a payment is answered and not confirmed": Breach(
            answer("ConfirmPayment", "ann", "lost", {"payment_id": NOBODY}),
            "I8",
            "ConfirmPayment lost of ann: answered, and its payment does not exist",
        ),
        "a confirmed payment is cancelled by its answer": Breach(
            "UPDATE answers SET state = 'CANCELLED', body = NULL WHERE request_id = 'direct-1'",
            "I8",
            f"ConfirmPayment direct-1 of bob: cancelled, and its payment {DIRECT} is CONFIRMED",
        ),
        "a confirmed payment has no answer": Breach(
            "DELETE FROM answers WHERE request_id = 'direct-1'",
            "I8",
            f"ConfirmPayment direct-1 of bob: not answered, and its payment {DIRECT} is CONFIRMED",
        ),
        "a second payment of the order was captured": Breach(
            payment_row(
                NOBODY, "ann", f"{PAY_B}:confirm_payment", order_id=A, amount=5, state="CONFIRMED"
            ),
            "I3 I7",
            f"saga {PAY_B} of ann: payment of KRW 5, and no such saga",
        ),
    },
    "gateway": {
        "the gateway has captured without a payment": Breach(
            gateway_charge("extra", "x", 5, 5),
            "I3 I7",
            "key extra: 5 captured, and there is no such payment",
        ),
        "the gateway has captured another amount": Breach(
            f"UPDATE payments SET total_amount = 1600 WHERE order_id = '{A}'",
            "I3 I7",
            "CONFIRMED over 1,500, at the gateway 1,600 captured and 0 refunded",
        ),
        "the gateway has captured another currency": Breach(
            f"UPDATE payments SET currency = 'USD' WHERE order_id = '{A}'",
            "I3 I7",
            f"payment {PAID_A} key key-31: at the gateway for USD and not KRW",
        ),
        "the gateway has captured for another order": Breach(
            f"UPDATE payments SET order_id = '{C}' WHERE order_id = '{A}'",
            "I3 I7",
            f"at the gateway for {C} and not {A}",
        ),
        "the gateway has lost a capture": Breach(
            f"DELETE FROM payments WHERE order_id = '{A}'",
            "I3 I7",
            f"payment {PAID_A} key key-31: CONFIRMED over 1,500, at the gateway 0 captured",
        ),
        "the gateway has not refunded": Breach(
            "DELETE FROM cancels",
            "I3 I7",
            f"payment {PAID_B} key key-32: CANCELLED over 700, at the gateway 700 captured and 0",
        ),
        "the gateway has charged a declined card": Breach(
            "UPDATE payments SET status = 'DONE', approved_at = 'then' WHERE status = 'ABORTED'",
            "I3 I7",
            "DECLINED over 600, at the gateway 600 captured",
        ),
    },
}


@pytest.mark.parametrize(
    ("where", "change"), [(where, change) for where in BREACHES for change in BREACHES[where]]
)
async def test_audit_reports_breach(books: Books, where: str, change: str) -> None:
    breach = BREACHES[where][change]
    books.change(where, breach.sql)
    report = await audit(books.sources, Limits(settle_s=0.0))
    broken = [line for line in report.lines if not line.holds]
    invariants = set(breach.invariants.split())
    assert invariants <= {line.invariant for line in broken}, as_text(report)
    named = {line.invariant for line in broken if breach.text in "\n".join(line.differences)}
    assert named & invariants, as_text(report)


def test_every_invariant_has_a_breach() -> None:
    breaches = [breach for changes in BREACHES.values() for breach in changes.values()]
    assert set(" ".join(breach.invariants for breach in breaches).split()) == set(INVARIANTS)
