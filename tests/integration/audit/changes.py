"""Changes of the clean books by SQL: sagas that were closed, payments that were given back."""

from __future__ import annotations

import json
from typing import Any

from tests.integration.audit.books import (
    CANCEL_B,
    COUPON_B,
    DIRECT,
    NOW,
    PAID_B,
    PAY_B,
    PRODUCT,
    B,
    answer,
    redemption_body,
)
from tests.integration.audit.payment_books import payment_body


def steps(**states: str | tuple[str, int]) -> str:
    """The steps of a saga by name; of one that stands, the amount."""
    reversals = {"cancel_payment": "payment", "refund_deduction": "balance"}
    participants = {"deduct_balance": "balance", "confirm_payment": "payment", **reversals}
    records = []
    for name, state in states.items():
        record: dict[str, Any] = {"name": name, "participant": participants.get(name, "coupon")}
        record["undoes"] = "x" if name in reversals or name == "restore_coupon" else ""
        if isinstance(state, tuple):
            record |= {"state": "STANDING", "standing_minor": state[1]}
            record["standing_reason"] = state[0]
        else:
            record |= {"state": state, "fenced": state == "UNKNOWN"}
        records.append(record)
    return f"'{json.dumps(records)}'"


def closed(saga_id: str, state: str, order_id: str, saga_steps: str, plan: int = 2) -> str:
    """A person closed the attempt; its order is free."""
    return (
        f"UPDATE orders SET state = 'PENDING' WHERE order_id = '{order_id}';"
        f"UPDATE sagas SET state = '{state}', resolution_reason = 'why', plan_version = {plan},"
        f" failure = '{{\"reason\": \"r\"}}', steps = {saga_steps} WHERE saga_id = '{saga_id}';"
        + answer("PayOrder", "bob", f"pay-{saga_id}", {"reason": "r"}, "REFUSED")
    )


def cancelling(state: str) -> str:
    """The cancellation of B has given back all but the coupon."""
    return (
        f"UPDATE sagas SET state = '{state}', steps = {steps(restore_coupon='PENDING')}"
        f" WHERE saga_id = '{CANCEL_B}';"
        f"UPDATE orders SET state = 'CANCELLING' WHERE order_id = '{B}';"
        f"UPDATE products SET sold = sold + 8 WHERE product_id = '{PRODUCT}'"
    )


COUPON_IN_USE = (
    "UPDATE redemptions SET restore_time = NULL, restore_request_id = NULL WHERE user_id = 'bob';"
    f"UPDATE coupons SET order_id = '{B}', redeem_time = '{NOW}',"
    f" redeem_request_id = '{PAY_B}:redeem_coupon' WHERE user_id = 'bob';"
    f"DELETE FROM answers WHERE request_id = '{PAY_B}:redeem_coupon';"
    + answer("RedeemCoupon", "bob", f"{PAY_B}:redeem_coupon", redemption_body(COUPON_B, B, 300))
)
PAID_AGAIN = (
    "UPDATE payments SET state = 'CONFIRMED', cancel_reason = NULL, cancel_request_time = NULL,"
    f" refunded_minor = 0 WHERE payment_id = '{PAID_B}';"
    f"DELETE FROM answers WHERE request_id IN ('{PAY_B}:confirm_payment',"
    f" '{CANCEL_B}:cancel_payment');"
    + answer(
        "ConfirmPayment",
        "bob",
        f"{PAY_B}:confirm_payment",
        payment_body(PAID_B, B, 700, "CONFIRMED"),
    )
)
REFUSED_REFUND_B = (
    "UPDATE payments SET state = 'CONFIRMED', refunded_minor = 0, cancel_request_id = 'c',"
    f" refund_refusal_code = 'NOT_CANCELABLE' WHERE payment_id = '{PAID_B}';"
    f"DELETE FROM answers WHERE request_id = '{CANCEL_B}:cancel_payment'"
)
CHARGED_AGAIN = (
    "DELETE FROM cancels; UPDATE payments SET status = 'DONE', balance_amount = 700,"
    f" transaction_key = 't key-32' WHERE order_id = '{B}'"
)
TO_BE_REFUNDED = (
    "UPDATE payments SET create_time = '2000-01-01', update_time = '2000-01-01',"
    f" due_time = {{}}, cancel_reason = 'r', cancel_request_id = 'c',"
    f" cancel_request_time = '{NOW}', refund_refusal_code = {{}} WHERE payment_id = '{DIRECT}';"
    "UPDATE answers SET state = 'CANCELLED', body = NULL WHERE request_id = 'direct-1'"
)


def outside(payment_id: str, amount: int, *, state: str = "CONFIRMED") -> str:
    return (
        f"UPDATE payments SET refunded_minor = {amount}, refunded_outside_minor = {amount},"
        f" resolution_reason = 'by hand', state = '{state}' WHERE payment_id = '{payment_id}';"
    )


def dashboard(key: str, amount: int, left: int) -> str:
    return (
        f"INSERT INTO cancels VALUES ('d', '{key}', {amount}, 'r', 'then');"
        "INSERT INTO dashboard_cancels VALUES ('d');"
        f"UPDATE payments SET balance_amount = {left}, transaction_key = 'd'"
        f" WHERE payment_key = '{key}'"
    )
