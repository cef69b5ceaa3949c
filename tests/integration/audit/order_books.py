"""The product, the orders and the sagas of the clean books."""

from __future__ import annotations

from typing import Any, Final

from tests.integration.audit.books import (
    BEFORE,
    CANCEL_B,
    COUPON_A,
    COUPON_B,
    HEARTBEAT,
    NOW,
    PAID_A,
    PAID_B,
    PAY_A,
    PAY_B,
    PAY_C,
    PAY_D,
    PRODUCT,
    TOMORROW,
    A,
    B,
    C,
    D,
    E,
    F,
    answer,
    completed,
    insert,
)


def order() -> str:
    """One product, the orders of the table above, their sagas."""
    paid = "redeem_coupon DONE, deduct_balance DONE, confirm_payment DONE, complete_order DONE"
    failed = (
        "redeem_coupon SKIPPED, deduct_balance COMPENSATED, confirm_payment COMPENSATED,"
        " complete_order PENDING"
    )
    running = (
        "redeem_coupon SKIPPED, deduct_balance DONE, confirm_payment SKIPPED,"
        " complete_order PENDING"
    )
    cancelled = "cancel_payment DONE, refund_deduction DONE, restore_coupon DONE, cancel_order DONE"
    asked_b = {"balance_minor": 1_000, "gateway_minor": 700, "coupon_id": COUPON_B}
    return (
        HEARTBEAT
        + insert("products", "product_id stocked reserved sold", PRODUCT, 100, 4 + 1, 20)
        + stock_entry("CREATED", "product-1", 60, 60, 1)
        + stock_entry("RESTOCKED", "restock-1", 40, 100, 2)
        + order_row(A, "ann", 20, "PAID", (500, 3_000, 1_500), coupon=COUPON_A, payment=PAID_A)
        + order_row(B, "bob", 8, "CANCELLED", (300, 1_000, 700), coupon=COUPON_B, payment=PAID_B)
        + order_row(C, "ann", 4, "PENDING")
        + order_row(D, "bob", 1, "PAYING")
        + order_row(E, "ann", 7, "EXPIRED")
        + order_row(F, "ann", 3, "CANCELLED")
        + saga(
            *(PAY_A, A, "ann", "COMPLETED", paid, 5_000),
            asked={"balance_minor": 3_000, "coupon_id": COUPON_A},
            facts={"discount_minor": 500, "payment_id": PAID_A},
        )
        + saga(
            *(PAY_B, B, "bob", "COMPLETED", paid, 2_000),
            asked={"balance_minor": 1_000, "coupon_id": COUPON_B},
            facts={"discount_minor": 300, "payment_id": PAID_B},
        )
        + saga(PAY_C, C, "ann", "COMPENSATED", failed, 1_000)
        + saga(PAY_D, D, "bob", "RUNNING", running, 250)
        + saga(
            *(CANCEL_B, B, "bob", "COMPLETED", cancelled, 2_000),
            kind="CANCEL_ORDER",
            asked=asked_b | {"pay_saga_id": PAY_B},
        )
        + answer("PayOrder", "ann", f"pay-{PAY_A}", _paid_body(A, PAID_A))
        + answer("PayOrder", "bob", f"pay-{PAY_B}", _paid_body(B, PAID_B))
        + answer("PayOrder", "ann", f"pay-{PAY_C}", {"reason": "r"}, "REFUSED")
        + answer("CancelOrder", "bob", "cancel-b", _paid_body(B, PAID_B) | {"state": "CANCELLING"})
        + answer("CancelOrder", "ann", "cancel-f", unpaid_body(F, "ann", 3))
    )


_METHOD_OF: Final = {"CREATED": "CreateProduct", "RESTOCKED": "RestockProduct"}


def stock_entry(kind: str, request_id: str, quantity: int, stocked: int, version: int) -> str:
    """An entry of the stock journal, and its answer."""
    columns = "kind request_id quantity stocked_after product_version"
    body = completed("products", "product_id stocked version", PRODUCT, stocked, version)
    body |= {"price": {"currency_code": "KRW", "amount_minor": 250}}
    return insert("stock_entries", columns, kind, request_id, quantity, stocked, version) + answer(
        _METHOD_OF[kind], "", request_id, body
    )


def order_row(
    order_id: str,
    user: str,
    quantity: int,
    state: str,
    paid: tuple[int, int, int] = (0, 0, 0),
    *,
    coupon: str | None = None,
    payment: str | None = None,
) -> str:
    request_id = f"create-{order_id}"
    order = insert(
        "orders",
        "order_id user_id request_id subtotal_minor discount_minor paid_by_balance_minor"
        " paid_by_gateway_minor coupon_id payment_id state expire_time",
        *(order_id, user, request_id, quantity * 250, *paid, coupon, payment, state),
        NOW if state == "EXPIRED" else TOMORROW,
    )
    line = (order_id, PRODUCT, quantity, 250)
    body = unpaid_body(order_id, user, quantity)
    body["expire_time"] = NOW if state == "EXPIRED" else TOMORROW
    return (
        order
        + insert("order_items", "order_id product_id quantity unit_price_minor", *line)
        + answer("CreateOrder", user, request_id, body)
    )


def unpaid_body(order_id: str, user: str, quantity: int) -> dict[str, Any]:
    """The body of the answer about a new order."""
    columns = "order_id user_id subtotal_minor state"
    body = completed("orders", columns, order_id, user, quantity * 250, "PENDING")
    amounts = ("discount_minor", "paid_by_balance_minor", "paid_by_gateway_minor")
    items = [{"product_id": PRODUCT, "quantity": quantity, "unit_price_minor": 250}]
    return body | dict.fromkeys(amounts, 0) | {"items": items, "payment_id": None}


_PAID: Final = {
    A: ("ann", 20, (500, 3_000, 1_500), COUPON_A),
    B: ("bob", 8, (300, 1_000, 700), COUPON_B),
}


def _paid_body(order_id: str, payment_id: str) -> dict[str, Any]:
    user, quantity, paid, coupon_id = _PAID[order_id]
    names = ("discount_minor", "paid_by_balance_minor", "paid_by_gateway_minor")
    body = unpaid_body(order_id, user, quantity) | dict(zip(names, paid, strict=True))
    return body | {"payment_id": payment_id, "coupon_id": coupon_id, "state": "PAID"}


def saga(  # noqa: PLR0917 - a row, in the order of its columns
    saga_id: str,
    order_id: str,
    user: str,
    state: str,
    steps: str,
    subtotal: int,
    *,
    kind: str = "PAY_ORDER",
    asked: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
) -> str:
    pairs = [step.split() for step in steps.split(", ")]
    request = {"request_id": f"pay-{saga_id}", "currency_code": "KRW", "subtotal_minor": subtotal}
    return insert(
        "sagas",
        "saga_id kind order_id user_id request_id state steps failure asked facts",
        *(saga_id, kind, order_id, user, f"pay-{saga_id}", state),
        [_step(name, step_state) for name, step_state in pairs],
        {"reason": "r"} if state == "COMPENSATED" else None,
        request | (asked or {}),
        {"discount_minor": 0, "payment_id": None} | (facts or {}),
    )


_PARTICIPANTS: Final = {
    "redeem_coupon": "coupon",
    "restore_coupon": "coupon",
    "deduct_balance": "balance",
    "refund_deduction": "balance",
    "confirm_payment": "payment",
    "cancel_payment": "payment",
}


def _step(name: str, state: str) -> dict[str, Any]:
    ended = state in {"DONE", "COMPENSATED"}
    reversal = name in {"restore_coupon", "refund_deduction", "cancel_payment"}
    return {
        "participant": _PARTICIPANTS.get(name, ""),
        "undoes": "the step of the saga that paid" if reversal else "",
        "name": name,
        "state": state,
        "begin_time": BEFORE if ended else None,
        "end_time": NOW if ended else None,
    }
