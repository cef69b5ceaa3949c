"""A small clean set of books over all services, as the rows that the services would have written.

| order | user | what became of it |
|-------|------|-------------------|
| A | ann | 5,000 paid: coupon 500, balance 3,000, gateway 1,500 |
| B | bob | 2,000 paid by coupon 300, balance 1,000, gateway 700; cancelled and refunded |
| C | ann | an attempt with balance 400 and a declined card, compensated; pending |
| D | bob | being paid by balance 250 |
| E, F | ann | expired; cancelled before it was paid |

Bob deducts 100 and pays 900 directly; another direct payment of 60 is charged and still unknown.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from deploy.local.gateway.ledger import Ledger

NOW: Final = "now()"
LATER: Final = "2100-01-01"


def uid(number: int) -> str:
    """A UUID that is easy to recognize in a failing test."""
    return f"01900000-0000-7000-8000-{number:012d}"


PRODUCT, COUPON_A, COUPON_B, CAMPAIGN = uid(1), uid(2), uid(3), uid(4)
A, B, C, D, E, F = (uid(number) for number in range(11, 17))
PAY_A, PAY_B, PAY_C, PAY_D, CANCEL_B = (uid(number) for number in range(21, 26))
PAID_A, PAID_B, DECLINED_C, DIRECT, UNKNOWN = (uid(number) for number in range(31, 36))

_NEW: Final = {"create_time": NOW, "update_time": NOW}
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "accounts": {"currency_code": "KRW", "update_time": NOW},
    "ledger_entries": {"currency_code": "KRW", "create_time": NOW},
    "answers": {"digest": ""},
    "campaigns": {"currency_code": "KRW", "name": "c", "request_id": "campaign-1"}
    | {"start_time": NOW, "end_time": LATER, "create_time": NOW, "coupon_lifetime_us": 1},
    "coupons": {"campaign_id": CAMPAIGN, "issue_time": NOW, "expire_time": LATER}
    | {"request_id": "issue-1"},
    "redemptions": {"currency_code": "KRW", "redeem_time": NOW},
    "payments": {"currency_code": "KRW", "gateway": "toss", "tries": 0, "version": 1, **_NEW},
    "products": {"name": "p", "currency_code": "KRW", "price_minor": 250, "version": 1, **_NEW},
    "orders": {"currency_code": "KRW", "failure_reason": "", "version": 1, "expire_time": LATER}
    | _NEW,
    "sagas": {"plan_version": 1, "asked": {}, "facts": {}, "epoch": 1, "lease_until": NOW}
    | {"attempts": 0, "last_error": "", "resolution_reason": "", **_NEW},
}
"""What the rows of a table have in common."""


def insert(table: str, columns: str, *values: Any) -> str:
    """``columns`` are separated by blanks, and completed by the table's defaults."""
    row = _DEFAULTS.get(table, {}) | dict(zip(columns.split(), values, strict=True))
    literals = ", ".join(map(_literal, row.values()))
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({literals});\n"


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if value == NOW or isinstance(value, int):
        return str(value)
    if isinstance(value, dict | list):
        value = json.dumps(value)
    return "'" + str(value).replace("'", "''") + "'"


def answer(method: str, scope: str, request_id: str, body: Any, state: str = "ANSWERED") -> str:
    text = None if state == "CANCELLED" else json.dumps(body)
    columns = "method scope request_id state body"
    return insert("answers", columns, method, scope, request_id, state, text)


# -- balance ---------------------------------------------------------------------------------------


def balance() -> str:
    """Charges, deductions of sagas and a direct one, refunds."""
    ann = [
        ("CHARGE", 10_000, "charge-1", None, None),
        ("DEDUCT", -3_000, f"{PAY_A}:deduct_balance", A, None),
        ("DEDUCT", -400, f"{PAY_C}:deduct_balance", C, None),
        ("REFUND", 400, f"{PAY_C}:deduct_balance:undo", C, f"{PAY_C}:deduct_balance"),
    ]
    bob = [
        ("CHARGE", 5_000, "charge-1", None, None),
        ("DEDUCT", -1_000, f"{PAY_B}:deduct_balance", B, None),
        ("DEDUCT", -100, "direct-1", None, None),
        ("REFUND", 1_000, f"{CANCEL_B}:refund_deduction", B, f"{PAY_B}:deduct_balance"),
        ("DEDUCT", -250, f"{PAY_D}:deduct_balance", D, None),
    ]
    # Eve's account is about to be opened, and her deduction was cancelled before it arrived.
    eve = answer("DeductBalance", "eve", "never-came", None, "CANCELLED")
    eve += answer("RefundDeduction", "eve", "refund-of-nothing", None)
    return _account("ann", 100, ann) + _account("bob", 200, bob) + _account("eve", 300, []) + eve


_METHODS = {"CHARGE": "ChargeBalance", "DEDUCT": "DeductBalance", "REFUND": "RefundDeduction"}


def _account(
    user: str, first_id: int, entries: Sequence[tuple[str, int, str, str | None, str | None]]
) -> str:
    script, available = "", 0
    undone = {refund_of for *_, refund_of in entries}
    for sequence, (kind, amount, request_id, order_id, refund_of) in enumerate(entries, 1):
        available += amount
        entry = (uid(first_id + sequence), sequence, amount, available)
        script += ledger_entry(user, entry, kind, request_id, order_id, refund_of)
        state = "CANCELLED" if request_id in undone else "ANSWERED"
        script += answer(_METHODS[kind], user, request_id, entry_body(entry), state)
    columns = "user_id available_minor version"
    return script + insert("accounts", columns, user, available, len(entries))


Entry = tuple[str, int, int, int]
"""Its id, sequence, amount, and the balance after it."""
_ENTRY_COLUMNS: Final = "entry_id sequence amount_minor balance_after_minor"


def ledger_entry(user: str, entry: Entry, *request: str | None) -> str:
    """``request``: kind, request_id, order_id and refund_of."""
    columns = f"user_id {_ENTRY_COLUMNS} kind request_id order_id refund_of"
    return insert("ledger_entries", columns, user, *entry, *request)


def entry_body(entry: Entry) -> dict[str, Any]:
    """The body of an entry's answer."""
    return dict(zip(_ENTRY_COLUMNS.split(), entry, strict=True))


# -- coupon ----------------------------------------------------------------------------------------


def coupon() -> str:
    """A campaign with two coupons, one redeemed and one restored."""
    return (
        insert(
            "campaigns",
            "campaign_id percent_discount max_discount_minor quantity issued",
            *(CAMPAIGN, 15, 500, 3, 2),
        )
        + _coupon(COUPON_A, "ann", 1, f"{PAY_A}:redeem_coupon", A, NOW)
        + _coupon(COUPON_B, "bob", 2, None, None, None)
        + redemption("ann", PAY_A, COUPON_A, order_id=A, order_amount=5_000, discount=500)
        + redemption(
            "bob", PAY_B, COUPON_B, order_id=B, order_amount=2_000, discount=300, restored=True
        )
    )


def _coupon(coupon_id: str, user: str, number: int, *use: str | None) -> str:
    columns = "coupon_id user_id issue_number redeem_request_id order_id redeem_time"
    body = {"coupon_id": coupon_id, "issue_number": number}
    return insert("coupons", columns, coupon_id, user, number, *use) + answer(
        "IssueCoupon", user, "issue-1", body
    )


def redemption(
    user: str,
    saga_id: str,
    coupon_id: str,
    *,
    order_id: str,
    order_amount: int,
    discount: int,
    restored: bool = False,
) -> str:
    request_id = f"{saga_id}:redeem_coupon"
    return insert(
        "redemptions",
        "user_id request_id coupon_id order_id order_amount_minor discount_minor"
        " restore_request_id restore_time",
        *(user, request_id, coupon_id, order_id, order_amount, discount),
        *(("restore-1", NOW) if restored else (None, None)),
    ) + answer(
        "RedeemCoupon",
        user,
        request_id,
        {"discount": {"currency_code": "KRW", "amount_minor": discount}},
        "CANCELLED" if restored else "ANSWERED",
    )


# -- payment ---------------------------------------------------------------------------------------


PAYMENTS = (
    (PAID_A, "ann", f"{PAY_A}:confirm_payment", (A, 1_500), "CONFIRMED"),
    (PAID_B, "bob", f"{PAY_B}:confirm_payment", (B, 700), "CANCELLED"),
    (DECLINED_C, "ann", f"{PAY_C}:confirm_payment", (C, 600), "DECLINED"),
    (DIRECT, "bob", "direct-1", ("elsewhere", 900), "CONFIRMED"),
    (UNKNOWN, "bob", "direct-2", ("elsewhere", 60), "UNKNOWN"),
)


def payment() -> str:
    """Payments of sagas, and two direct ones."""
    return "".join(payment_row(*row) for row in PAYMENTS)


_ANSWERS = {"CONFIRMED": "ANSWERED", "DECLINED": "REFUSED", "CANCELLED": "CANCELLED"}


def payment_row(
    payment_id: str, user: str, request_id: str, paid: tuple[str, int], state: str
) -> str:
    """``paid``: the order, and the amount."""
    key = f"key-{payment_id[-2:]}"
    transaction = f"t {key}" if state in {"CONFIRMED", "CANCELLED"} else None
    script = insert(
        "payments",
        "payment_id payment_key user_id request_id order_id amount_minor state"
        " gateway_transaction_id failure_code cancel_reason due_time",
        *(payment_id, key, user, request_id, *paid, state, transaction),
        "REJECT" if state == "DECLINED" else None,
        "r" if state == "CANCELLED" else None,
        NOW if state == "UNKNOWN" else None,
    )
    if state in _ANSWERS:
        body = payment_body(payment_id, paid[1], transaction)
        script += answer("ConfirmPayment", user, request_id, body, _ANSWERS[state])
    return script


def payment_body(payment_id: str, amount: int, transaction: str | None) -> dict[str, Any]:
    """The body of a payment's answer."""
    money = {"currency_code": "KRW", "amount_minor": amount}
    return {
        "payment_id": payment_id,
        "amount": money,
        "state": "CONFIRMED",
        "gateway_transaction_id": transaction,
    }


def write_gateway(record: Path) -> None:
    """The gateway's record of the same payments."""
    Ledger(record).close()
    script = (
        f"INSERT INTO payments VALUES ('key-{DECLINED_C[-2:]}', '{C}', 'ABORTED', 'KRW', 600, 600,"
        " 'declined', 'then', NULL, 'REJECT');"
        f"INSERT INTO cancels VALUES ('c', 'key-{PAID_B[-2:]}', 700, 'r', 'then');"
    )
    for payment_id, _, _, (order_id, amount), state in PAYMENTS:
        if state != "DECLINED":
            left = 0 if state == "CANCELLED" else amount
            script += gateway_charge(f"key-{payment_id[-2:]}", order_id, amount, left)
    on_gateway(record, script)


def gateway_charge(key: str, order_id: str, amount: int, left: int) -> str:
    status = "DONE" if left else "CANCELED"
    return (
        f"INSERT INTO payments VALUES ('{key}', '{order_id}', '{status}', 'KRW', {amount}, {left},"
        f" 't {key}', 'then', 'then', NULL);\n"
    )


def on_gateway(record: Path, script: str) -> None:
    with closing(sqlite3.connect(record)) as connection, connection:
        connection.executescript(script)


# -- order -----------------------------------------------------------------------------------------


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
    return (
        insert("products", "product_id stocked reserved sold", PRODUCT, 100, 4 + 1, 20)
        + order_row(A, "ann", 20, "PAID", (500, 3_000, 1_500), coupon=COUPON_A, payment=PAID_A)
        + order_row(B, "bob", 8, "CANCELLED", (300, 1_000, 700), coupon=COUPON_B, payment=PAID_B)
        + order_row(C, "ann", 4, "PENDING")
        + order_row(D, "bob", 1, "PAYING")
        + order_row(E, "ann", 7, "EXPIRED")
        + order_row(F, "ann", 3, "CANCELLED")
        + saga(PAY_A, A, "ann", "COMPLETED", paid)
        + saga(PAY_B, B, "bob", "COMPLETED", paid)
        + saga(PAY_C, C, "ann", "COMPENSATED", failed)
        + saga(PAY_D, D, "bob", "RUNNING", running)
        + saga(CANCEL_B, B, "bob", "COMPLETED", cancelled, kind="CANCEL_ORDER")
        + answer("PayOrder", "ann", f"pay-{PAY_A}", _paid_body(A, (500, 3_000, 1_500), PAID_A))
        + answer("PayOrder", "bob", f"pay-{PAY_B}", _paid_body(B, (300, 1_000, 700), PAID_B))
        + answer("PayOrder", "ann", f"pay-{PAY_C}", {"reason": "r"}, "REFUSED")
        + answer("CancelOrder", "bob", "cancel-b", {"order_id": B})
        + answer("CancelOrder", "ann", "cancel-f", {"order_id": F})
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
        " paid_by_gateway_minor coupon_id payment_id state",
        *(order_id, user, request_id, quantity * 250, *paid, coupon, payment, state),
    )
    line = (order_id, PRODUCT, quantity, 250)
    return (
        order
        + insert("order_items", "order_id product_id quantity unit_price_minor", *line)
        + answer(
            "CreateOrder",
            user,
            request_id,
            {"order_id": order_id, "subtotal_minor": quantity * 250},
        )
    )


def _paid_body(order_id: str, paid: tuple[int, int, int], payment_id: str) -> dict[str, Any]:
    names = ("discount_minor", "paid_by_balance_minor", "paid_by_gateway_minor")
    return {"order_id": order_id, "payment_id": payment_id, **dict(zip(names, paid, strict=True))}


def saga(
    saga_id: str, order_id: str, user: str, state: str, steps: str, *, kind: str = "PAY_ORDER"
) -> str:
    pairs = [step.split() for step in steps.split(", ")]
    return insert(
        "sagas",
        "saga_id kind order_id user_id request_id state steps failure",
        *(saga_id, kind, order_id, user, f"pay-{saga_id}", state),
        [{"name": name, "state": step_state} for name, step_state in pairs],
        {"reason": "r"} if state == "COMPENSATED" else None,
    )


BOOKS: Final = {"balance": balance, "coupon": coupon, "order": order, "payment": payment}
