"""Each invariant is shown to speak: one thing is changed in a clean book, and it is told of."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from deploy.audit.__main__ import as_text
from deploy.audit.audit import Limits, audit
from deploy.audit.look import Report
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
    insert,
    order_row,
    payment_row,
    redemption,
    saga,
    uid,
)
from tests.integration.audit.conftest import Book

AT_ONCE = Limits(settle_s=0.0)
NOBODY = uid(99)


@dataclass(frozen=True)
class Planted:
    """What is changed, where, who must speak, and what must be named."""

    what: str
    where: str
    script: str
    speaks: str
    named: str


_ENTRY = {
    "user_id": "ann",
    "currency_code": "KRW",
    "sequence": 5,
    "entry_id": NOBODY,
    "balance_after_minor": 0,
    "create_time": "now()",
}


def _deduction(request_id: str, order_id: str) -> str:
    """A deduction of 5 after Ann's last entry, in order but for what it is for."""
    told = {
        "entry_id": NOBODY,
        "sequence": 5,
        "amount_minor": -5,
        "balance_after_minor": 6_995,
    }
    row = _ENTRY | told | {"kind": "DEDUCT", "request_id": request_id, "order_id": order_id}
    return (
        insert("ledger_entries", **row)
        + answer("DeductBalance", "ann", request_id, told)
        + "UPDATE accounts SET available_minor = 6995, version = 5 WHERE user_id = 'ann';\n"
    )


BALANCE = [
    Planted(
        "a balance is changed",
        "balance",
        "UPDATE accounts SET available_minor = available_minor + 1 WHERE user_id = 'ann'",
        "I1 I2 I3",
        "account of ann in KRW: balance 7001, sum of its entries 7000",
    ),
    Planted(
        "a balance is negative",
        "balance",
        "ALTER TABLE accounts DROP CONSTRAINT accounts_available_not_negative;"
        "UPDATE accounts SET available_minor = -1 WHERE user_id = 'eve'",
        "I1 I2 I3",
        "account of eve in KRW: balance -1",
    ),
    Planted(
        "money moves between two accounts",
        "balance",
        "UPDATE accounts SET available_minor = available_minor"
        " + CASE user_id WHEN 'ann' THEN 1 ELSE -1 END WHERE user_id <> 'eve'",
        "I2",
        "account of bob in KRW: balance 4649, sum of its entries 4650",
    ),
    Planted(
        "the last entry is deleted",
        "balance",
        "DELETE FROM ledger_entries WHERE user_id = 'bob' AND sequence = 5",
        "I1 I2 I3 I8",
        "version 5, last entry 4",
    ),
    Planted(
        "an entry in the middle is deleted",
        "balance",
        "DELETE FROM ledger_entries WHERE user_id = 'bob' AND sequence = 3",
        "I2 I8",
        "4 entries numbered 1 to 5",
    ),
    Planted(
        "an account is deleted",
        "balance",
        "DELETE FROM accounts WHERE user_id = 'bob'",
        "I1 I2 I3",
        "account of bob in KRW: has entries and does not exist",
    ),
    Planted(
        "a running sum is wrong",
        "balance",
        "UPDATE ledger_entries SET balance_after_minor = 1 WHERE user_id = 'bob' AND sequence = 2",
        "I2",
        "after entry 2 (-1000) the balance is told as 1, it was 5000",
    ),
    Planted(
        "a charge is made out of nothing",
        "balance",
        "UPDATE ledger_entries SET amount_minor = 20000 WHERE kind = 'CHARGE' AND user_id = 'ann'",
        "I1 I2 I3 I8",
        "KRW: charged 25000, but 11650 are left and 3350 spent",
    ),
    Planted(
        "a refund is larger than its deduction",
        "balance",
        "UPDATE ledger_entries SET amount_minor = 500 WHERE kind = 'REFUND' AND user_id = 'ann'",
        "I2",
        f"deduction {PAY_C}:deduct_balance was -400 in KRW",
    ),
    Planted(
        "a refund has no deduction",
        "balance",
        "UPDATE ledger_entries SET refund_of = 'no-such' WHERE kind = 'REFUND'",
        "I2 I8",
        "deduction no-such is not in the ledger",
    ),
    Planted(
        "a deduction is refunded twice",
        "balance",
        "DROP INDEX ledger_entries_refund_once;"
        + insert(
            "ledger_entries",
            **_ENTRY,
            kind="REFUND",
            amount_minor=400,
            request_id="again",
            order_id=C,
            refund_of=f"{PAY_C}:deduct_balance",
        ),
        "I2",
        f"{PAY_C}:deduct_balance is refunded 2 times",
    ),
    Planted(
        "a paid order's deduction is another amount",
        "order",
        f"UPDATE orders SET paid_by_balance_minor = 2900, discount_minor = 600"
        f" WHERE order_id = '{A}'",
        "I3",
        f"order {A}: deduction with amount 3000 and not 2900",
    ),
    Planted(
        "a deduction belongs to no saga",
        "balance",
        _deduction(f"{NOBODY}:deduct_balance", A),
        "I3",
        f"saga {NOBODY} of ann: deduction of KRW 5, and no such saga",
    ),
    Planted(
        "a deduction came after its cancellation",
        "balance",
        f"DELETE FROM answers WHERE request_id = '{PAY_C}:deduct_balance:undo';"
        f"DELETE FROM ledger_entries WHERE kind = 'REFUND' AND user_id = 'ann';"
        "UPDATE accounts SET available_minor = 6600, version = 3 WHERE user_id = 'ann'",
        "I3 I8",
        f"order {C}: deduction of KRW 400, and nothing was paid so",
    ),
    Planted(
        "a deduction is answered and not entered",
        "balance",
        answer("DeductBalance", "ann", "lost", {"entry_id": NOBODY}),
        "I8",
        "DeductBalance lost of ann: answered, and not in the ledger",
    ),
    Planted(
        "a charge is answered with another amount",
        "balance",
        "UPDATE answers SET body = jsonb_set(body::jsonb, '{amount_minor}', '1')::text"
        " WHERE method = 'ChargeBalance' AND scope = 'ann'",
        "I8",
        "ChargeBalance charge-1 of ann: answered as entry 1 of 1, entered as 1 of 10000",
    ),
    Planted(
        "a refund is answered and not entered",
        "balance",
        "UPDATE answers SET body = jsonb_set(body::jsonb, '{entry_id}', '\"gone\"')::text"
        " WHERE method = 'RefundDeduction' AND scope = 'ann'",
        "I8",
        "answered with entry gone, which is not in the ledger",
    ),
    Planted(
        "an entry has no answer",
        "balance",
        "DELETE FROM answers WHERE method = 'ChargeBalance' AND scope = 'ann'",
        "I8",
        "CHARGE of 10000 by ann under charge-1: in the ledger, and its request is not answered",
    ),
    Planted(
        "a refunded deduction is not cancelled",
        "balance",
        "UPDATE answers SET state = 'ANSWERED', body = 'null'"
        f" WHERE request_id = '{PAY_C}:deduct_balance'",
        "I8",
        "answered, and refunded without being cancelled",
    ),
]

ORDER = [
    Planted(
        "a reserved count is dropped",
        "order",
        "UPDATE products SET reserved = 0",
        "I4",
        f"product {PRODUCT}: 0 reserved, 5 in unpaid orders",
    ),
    Planted(
        "a sold count is too high",
        "order",
        "UPDATE products SET sold = sold + 1",
        "I4",
        f"product {PRODUCT}: 21 sold, 20 in paid orders",
    ),
    Planted(
        "more is sold than was stocked",
        "order",
        "ALTER TABLE products DROP CONSTRAINT products_stock_not_oversold;"
        "UPDATE products SET stocked = 24",
        "I4",
        f"product {PRODUCT}: 24 stocked, 5 reserved, 20 sold",
    ),
    Planted(
        "a product is gone",
        "order",
        "DELETE FROM products",
        "I4",
        f"product {PRODUCT}: is ordered and does not exist",
    ),
    Planted(
        "a paid order does not add up",
        "order",
        "ALTER TABLE orders DROP CONSTRAINT orders_paid_in_full;"
        f"UPDATE orders SET discount_minor = 499 WHERE order_id = '{A}'",
        "I6 I5",
        f"order {A} (PAID): lines 5000, subtotal 5000, discount 499",
    ),
    Planted(
        "a cancelled order does not add up",
        "order",
        f"UPDATE orders SET paid_by_balance_minor = 999 WHERE order_id = '{B}'",
        "I3 I6",
        f"order {B} (CANCELLED): lines 2000, subtotal 2000, discount 300, by balance 999",
    ),
    Planted(
        "the lines are not the subtotal",
        "order",
        f"UPDATE order_items SET unit_price_minor = 1 WHERE order_id = '{E}'",
        "I6",
        f"order {E} (EXPIRED): lines 7, subtotal 1750",
    ),
    Planted(
        "an order is paid by nothing",
        "order",
        order_row(NOBODY, "ann", 2, "PAID", (100, 300, 100), coupon=COUPON_B, payment=NOBODY)
        + "UPDATE products SET sold = sold + 2",
        "I3 I5 I6 I7",
        f"order {NOBODY}: paid KRW 100 so, and there is no payment",
    ),
    Planted(
        "an order made an illegal move",
        "order",
        f"UPDATE orders SET state = 'EXPIRED' WHERE order_id = '{D}'",
        "I4 I6",
        f"order {D} is EXPIRED, with 0 payments completed, 1 under way",
    ),
    Planted(
        "an order was paid twice",
        "order",
        saga(NOBODY, A, "ann", "COMPLETED", "redeem_coupon DONE, complete_order DONE"),
        "I3 I5 I6 I7 I8",
        f"order {A} is PAID, with 2 payments completed",
    ),
    Planted(
        "a cancelled payment of an order is not cancelled",
        "order",
        f"UPDATE sagas SET state = 'RUNNING' WHERE saga_id = '{CANCEL_B}'",
        "I6",
        f"order {B} is CANCELLED, with 1 payments completed, 0 under way, 0 cancellations",
    ),
    Planted(
        "an ended saga left a step begun",
        "order",
        "UPDATE sagas SET steps = jsonb_set(steps, '{1,state}', '\"BEGUN\"')"
        f" WHERE saga_id = '{PAY_C}'",
        "I6",
        f"saga {PAY_C} (COMPENSATED) of order {C}: steps redeem_coupon SKIPPED,"
        " deduct_balance BEGUN",
    ),
    Planted(
        "a saga has no order",
        "order",
        saga(NOBODY, uid(98), "ann", "RUNNING", "complete_order PENDING"),
        "I6",
        "there is no such order",
    ),
    Planted(
        "an order is answered and does not exist",
        "order",
        answer("CreateOrder", "ann", "lost", {"order_id": NOBODY}),
        "I8",
        f"CreateOrder lost of ann: answered with order {NOBODY}, which does not exist",
    ),
    Planted(
        "an order has no answer",
        "order",
        f"DELETE FROM answers WHERE request_id = 'create-{E}'",
        "I8",
        f"order {E} of ann: exists, and its request create-{E} is not answered",
    ),
    Planted(
        "a payment is answered and is under way",
        "order",
        answer("PayOrder", "bob", f"pay-{PAY_D}", {"order_id": D}),
        "I8",
        f"PayOrder pay-{PAY_D} of bob: answered, and its saga {PAY_D} is RUNNING",
    ),
    Planted(
        "a refused attempt is not answered",
        "order",
        f"DELETE FROM answers WHERE request_id = 'pay-{PAY_C}'",
        "I8",
        f"saga {PAY_C} of order {C}: compensated, and its request pay-{PAY_C} of ann is not",
    ),
    Planted(
        "a cancellation is answered and did not happen",
        "order",
        answer("CancelOrder", "ann", "lost", {"order_id": A}),
        "I8",
        f"CancelOrder lost of ann: answered, and order {A} is PAID",
    ),
]

COUPON = [
    Planted(
        "more is issued than there is",
        "coupon",
        "ALTER TABLE campaigns DROP CONSTRAINT campaigns_issued_within_quantity;"
        "UPDATE campaigns SET quantity = 1",
        "I5",
        f"campaign {CAMPAIGN}: issued 2 of 1",
    ),
    Planted(
        "a coupon is gone",
        "coupon",
        f"DELETE FROM coupons WHERE coupon_id = '{COUPON_B}'",
        "I5 I8",
        f"campaign {CAMPAIGN}: issued 2, 1 coupons",
    ),
    Planted(
        "a number is left out",
        "coupon",
        f"UPDATE coupons SET issue_number = 3 WHERE coupon_id = '{COUPON_B}'",
        "I5 I8",
        f"campaign {CAMPAIGN}: 2 coupons with 2 numbers from 1 to 3",
    ),
    Planted(
        "a user has two",
        "coupon",
        "ALTER TABLE coupons DROP CONSTRAINT coupons_user_once;"
        f"UPDATE coupons SET user_id = 'ann' WHERE coupon_id = '{COUPON_B}'",
        "I5 I8",
        f"campaign {CAMPAIGN}: 2 coupons of 1 users",
    ),
    Planted(
        "a coupon is in use without a redemption",
        "coupon",
        f"UPDATE coupons SET order_id = '{C}', redeem_time = now(),"
        f" redeem_request_id = 'r' WHERE coupon_id = '{COUPON_B}'",
        "I5",
        f"coupon {COUPON_B}: in use by order {C}, and no redemption is live",
    ),
    Planted(
        "a redeemed coupon looks free",
        "coupon",
        "UPDATE coupons SET order_id = NULL, redeem_time = NULL, redeem_request_id = NULL",
        "I5",
        f"coupon {COUPON_A}: not in use, and its redemption",
    ),
    Planted(
        "a coupon is in use by another order than redeemed it",
        "coupon",
        f"UPDATE coupons SET order_id = '{C}' WHERE coupon_id = '{COUPON_A}'",
        "I5",
        f"coupon {COUPON_A}: in use by order {C} under",
    ),
    Planted(
        "a coupon is redeemed for a dead order",
        "coupon",
        redemption("bob", PAY_D, COUPON_B, order_id=F, order_amount=750, discount=1).replace(
            PAY_D, NOBODY
        )
        + f"UPDATE coupons SET order_id = '{F}', redeem_time = now(),"
        f" redeem_request_id = '{NOBODY}:redeem_coupon' WHERE coupon_id = '{COUPON_B}'",
        "I5",
        f"saga {NOBODY} of bob: redemption of KRW 1, and no such saga",
    ),
    Planted(
        "a restored coupon is live again",
        "coupon",
        "UPDATE redemptions SET restore_time = NULL, restore_request_id = NULL"
        f" WHERE coupon_id = '{COUPON_B}'",
        "I5 I8",
        f"order {B}: cancelled, and the redemption of KRW 300 is not undone",
    ),
    Planted(
        "a discount is another than the order's",
        "coupon",
        f"UPDATE redemptions SET discount_minor = 501 WHERE coupon_id = '{COUPON_A}'",
        "I5",
        f"order {A}: redemption with amount 501 and not 500",
    ),
    Planted(
        "a paid order's redemption is undone",
        "coupon",
        "UPDATE redemptions SET restore_time = now(), restore_request_id = 'r'"
        f" WHERE coupon_id = '{COUPON_A}'",
        "I5 I8",
        f"order {A}: paid KRW 500 so, and the redemption is undone",
    ),
    Planted(
        "an issued coupon has no answer",
        "coupon",
        "DELETE FROM answers WHERE method = 'IssueCoupon' AND scope = 'ann'",
        "I8",
        f"coupon {COUPON_A} of ann: issued, and its request issue-1 is not answered",
    ),
    Planted(
        "a redemption is answered and did not happen",
        "coupon",
        answer("RedeemCoupon", "ann", "lost", {}),
        "I8",
        "RedeemCoupon lost of ann: answered, and no coupon was redeemed",
    ),
]

PAYMENT = [
    Planted(
        "the gateway has captured for nobody",
        "gateway",
        "INSERT INTO payments VALUES"
        " ('extra', 'x', 'DONE', 'KRW', 5, 5, 'extra', 'then', 'then', NULL)",
        "I3 I7",
        "key extra: 5 captured, and there is no such payment",
    ),
    Planted(
        "the gateway has captured another amount",
        "gateway",
        f"UPDATE payments SET total_amount = 1600 WHERE order_id = '{A}'",
        "I3 I7",
        "CONFIRMED over 1,500, at the gateway 1,600 captured and 0 refunded",
    ),
    Planted(
        "the gateway has captured another currency",
        "gateway",
        f"UPDATE payments SET currency = 'USD' WHERE order_id = '{A}'",
        "I3 I7",
        f"payment {PAID_A} key key-31: at the gateway for USD and not KRW",
    ),
    Planted(
        "the gateway has captured for another order",
        "gateway",
        f"UPDATE payments SET order_id = '{C}' WHERE order_id = '{A}'",
        "I3 I7",
        f"at the gateway for {C} and not {A}",
    ),
    Planted(
        "the gateway has lost a capture",
        "gateway",
        f"DELETE FROM payments WHERE order_id = '{A}'",
        "I3 I7",
        f"payment {PAID_A} key key-31: CONFIRMED over 1,500, at the gateway 0 captured",
    ),
    Planted(
        "the gateway has not refunded",
        "gateway",
        "DELETE FROM cancels",
        "I3 I7",
        f"payment {PAID_B} key key-32: CANCELLED over 700, at the gateway 700 captured and 0",
    ),
    Planted(
        "the gateway has charged a declined card",
        "gateway",
        "UPDATE payments SET status = 'DONE', approved_at = 'then' WHERE failure_code IS NOT NULL",
        "I3 I7",
        "DECLINED over 600, at the gateway 600 captured",
    ),
    Planted(
        "a payment belongs to no saga",
        "payment",
        f"UPDATE payments SET request_id = '{NOBODY}:confirm_payment'"
        f" WHERE payment_id = '{DIRECT}'",
        "I3 I7 I8",
        f"saga {NOBODY} of bob: payment of KRW 900, and no such saga",
    ),
    Planted(
        "an order's payment is gone",
        "payment",
        f"DELETE FROM payments WHERE payment_id = '{PAID_A}'",
        "I3 I7 I8",
        f"order {A}: paid KRW 1,500 so, and there is no payment",
    ),
    Planted(
        "an order's payment is another",
        "order",
        f"UPDATE orders SET payment_id = '{NOBODY}' WHERE order_id = '{A}'",
        "I7",
        f"order {A}: payment with payment_id {PAID_A} and not {NOBODY}",
    ),
    Planted(
        "a paid order's payment is not decided",
        "payment",
        "UPDATE payments SET state = 'UNKNOWN', gateway_transaction_id = NULL, due_time = now()"
        f" WHERE payment_id = '{PAID_A}'",
        "I7 I8",
        f"order {A}: payment with state UNKNOWN and not CONFIRMED or CANCELLED",
    ),
    Planted(
        "a payment is answered and not confirmed",
        "payment",
        answer("ConfirmPayment", "ann", "lost", {"payment_id": NOBODY}),
        "I8",
        "ConfirmPayment lost of ann: answered, and its payment does not exist",
    ),
    Planted(
        "a confirmed payment is cancelled by its answer",
        "payment",
        "UPDATE answers SET state = 'CANCELLED', body = NULL WHERE request_id = 'direct-1'",
        "I8",
        f"ConfirmPayment direct-1 of bob: cancelled, and its payment {DIRECT} is CONFIRMED",
    ),
    Planted(
        "a confirmed payment has no answer",
        "payment",
        "DELETE FROM answers WHERE request_id = 'direct-1'",
        "I8",
        f"payment {DIRECT} of bob: confirmed, and its request direct-1 is not answered",
    ),
    Planted(
        "a second payment of the order was captured",
        "payment",
        payment_row(NOBODY, "ann", f"{PAY_B}:confirm_payment", A, amount=5, state="CONFIRMED"),
        "I3 I7",
        f"saga {PAY_B} of ann: payment of KRW 5, and no such saga",
    ),
]


def _spoken(report: Report) -> set[str]:
    return {line.invariant for line in report.lines if not line.holds}


@pytest.mark.parametrize(
    "planted", BALANCE + ORDER + COUPON + PAYMENT, ids=lambda planted: planted.what
)
async def test_speaks_of(book: Book, planted: Planted) -> None:
    book.spoil(planted.where, planted.script)
    report = await audit(book.sources, AT_ONCE)
    text = as_text(report)
    assert not report.holds
    assert set(planted.speaks.split()) <= _spoken(report), text
    assert planted.named in text
    named = [d for line in report.lines for d in line.differences if planted.named in d]
    spoken = {line.invariant for line in report.lines if set(named) & set(line.differences)}
    assert spoken & set(planted.speaks.split()), text
