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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from deploy.local.gateway.ledger import Ledger

_NOW: Final = datetime.now(UTC)
NOW: Final = _NOW.isoformat()
"""The last heartbeat, whenever the test runs."""
BEFORE: Final = (_NOW - timedelta(hours=1)).isoformat()
_A_DAY_AGO: Final = (_NOW - timedelta(days=1)).isoformat()
TOMORROW: Final = (_NOW + timedelta(days=1)).isoformat()
A_DAY_US: Final = 86_400_000_000


def uid(number: int) -> str:
    """A UUID that is easy to recognize in a failing test."""
    return f"01900000-0000-7000-8000-{number:012d}"


PRODUCT, COUPON_A, COUPON_B, CAMPAIGN = uid(1), uid(2), uid(3), uid(4)
TICKET_B = f"{uid(6)[:14]}7{uid(6)[15:-8]}{CAMPAIGN[-8:]}"
A, B, C, D, E, F = (uid(number) for number in range(11, 17))
PAY_A, PAY_B, PAY_C, PAY_D, CANCEL_B = (uid(number) for number in range(21, 26))
PAID_A, PAID_B, DECLINED_C, DIRECT, UNKNOWN = (uid(number) for number in range(31, 36))

_NEW: Final = {"create_time": BEFORE, "update_time": NOW}
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "accounts": {"currency_code": "KRW", "update_time": NOW},
    "ledger_entries": {"currency_code": "KRW", "create_time": NOW},
    "answers": {"digest": ""},
    "campaigns": {"currency_code": "KRW", "name": "c", "request_id": "campaign-1"}
    | {"fixed_discount_minor": None, "min_order_minor": None, "start_time": BEFORE}
    | {"end_time": TOMORROW, "create_time": BEFORE, "coupon_lifetime_us": A_DAY_US},
    "coupons": {"campaign_id": CAMPAIGN, "issue_time": NOW, "expire_time": TOMORROW}
    | {"request_id": "issue-1", "ticket_id": None},
    "redemptions": {"currency_code": "KRW", "redeem_time": NOW},
    "payments": {"currency_code": "KRW", "gateway": "toss", "tries": 0, "version": 1, **_NEW},
    "products": {"name": "p", "currency_code": "KRW", "price_minor": 250, "version": 9, **_NEW},
    "stock_entries": {"product_id": PRODUCT, "create_time": BEFORE},
    "orders": {"currency_code": "KRW", "failure_reason": "", "version": 1, "expire_time": TOMORROW}
    | _NEW,
    "sagas": {"plan_version": 2, "epoch": 1, "lease_until": NOW, "attempts": 0}
    | {"last_error": "", "resolution_reason": "", **_NEW},
}
"""What the rows of a table have in common."""
HEARTBEAT: Final = f"""
UPDATE heartbeat
   SET runs = '{{[{_A_DAY_AGO},{NOW})}}', beat_time = '{NOW}';
"""
HOUR_PASSES: Final = """
UPDATE heartbeat SET beat_time = beat_time + interval '1 hour',
       runs = tstzmultirange(tstzrange(lower(runs), beat_time + interval '1 hour'))
"""
"""The service runs for another hour."""


def insert(table: str, columns: str, *values: Any) -> str:
    """``columns`` are separated by blanks, and completed by the table's defaults."""
    row = completed(table, columns, *values)
    literals = ", ".join(map(_literal, row.values()))
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({literals});\n"


def completed(table: str, columns: str, *values: Any) -> dict[str, Any]:
    """The whole row, as it is in the answer about it."""
    return _DEFAULTS.get(table, {}) | dict(zip(columns.split(), values, strict=True))


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
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
        request = (kind, request_id, order_id, refund_of)
        script += ledger_entry(user, entry, *request)
        state = "CANCELLED" if request_id in undone else "ANSWERED"
        script += answer(_METHODS[kind], user, request_id, entry_body(user, entry, *request), state)
    charged = sum(amount for kind, amount, *_ in entries if kind == "CHARGE")
    columns = "user_id available_minor version charged_minor charged_at_version"
    values = (user, available, len(entries), charged, len(entries))
    return script + insert("accounts", columns, *values)


Entry = tuple[str, int, int, int]
"""Its id, sequence, amount, and the balance after it."""
_ENTRY_COLUMNS: Final = "entry_id sequence amount_minor balance_after_minor"


def ledger_entry(user: str, entry: Entry, *request: str | None) -> str:
    """``request``: kind, request_id, order_id and refund_of."""
    columns = f"user_id {_ENTRY_COLUMNS} kind request_id order_id refund_of"
    return insert("ledger_entries", columns, user, *entry, *request)


def entry_body(user: str, entry: Entry, *request: str | None) -> dict[str, Any]:
    """The body of an entry's answer."""
    columns = f"{_ENTRY_COLUMNS} kind request_id order_id refund_of"
    row = completed("ledger_entries", columns, *entry, *request)
    return row | {"account_id": [user, row.pop("currency_code")]}


# -- coupon ----------------------------------------------------------------------------------------


def coupon() -> str:
    """A campaign with two coupons, one redeemed, and one issued by ticket and restored."""
    columns = "campaign_id percent_discount max_discount_minor quantity issued issued_by_ticket"
    values = (CAMPAIGN, 15, 500, 3, 2, 1)
    row = completed("campaigns", columns, *values)
    body = row | {"terms": row, "issued": 0}
    restored = _coupon_row(COUPON_B, "bob", 2, TICKET_B) | {"as_of": NOW}
    return (
        insert("campaigns", columns, *values)
        + answer("CreateCampaign", "", "campaign-1", body)
        + _coupon((COUPON_A, "ann", 1, None), f"{PAY_A}:redeem_coupon", A, NOW)
        + _coupon((COUPON_B, "bob", 2, TICKET_B), None, None, None)
        + redemption("ann", PAY_A, COUPON_A, order_id=A, order_amount=5_000, discount=500)
        + redemption(
            "bob", PAY_B, COUPON_B, order_id=B, order_amount=2_000, discount=300, restored=True
        )
        + answer("RestoreCoupon", "bob", "restore-1", {"coupon": restored})
    )


_COUPON_COLUMNS: Final = "coupon_id user_id issue_number ticket_id"


def _coupon_row(*coupon: str | int | None) -> dict[str, Any]:
    return completed("coupons", _COUPON_COLUMNS, *coupon)


def _coupon(coupon: tuple[str, str, int, str | None], *use: str | None) -> str:
    columns = f"{_COUPON_COLUMNS} redeem_request_id order_id redeem_time"
    _, user, _, ticket_id = coupon
    method = "IssueCoupon" if ticket_id is None else "QueueCoupon"
    return insert("coupons", columns, *coupon, *use) + answer(
        method, user, "issue-1", _coupon_row(*coupon)
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
        redemption_body(coupon_id, order_id, discount),
        "CANCELLED" if restored else "ANSWERED",
    )


def redemption_body(coupon_id: str, order_id: str, discount: int) -> dict[str, Any]:
    """The body of a redemption's answer."""
    return {
        "coupon": {"coupon_id": coupon_id, "order_id": order_id},
        "discount": {"currency_code": "KRW", "amount_minor": discount},
    }


# -- payment ---------------------------------------------------------------------------------------


DIRECTLY: Final = "elsewhere"
PAYMENTS = (
    (PAID_A, "ann", f"{PAY_A}:confirm_payment", (A, 1_500), "CONFIRMED"),
    (PAID_B, "bob", f"{PAY_B}:confirm_payment", (B, 700), "CANCELLED"),
    (DECLINED_C, "ann", f"{PAY_C}:confirm_payment", (C, 600), "DECLINED"),
    (DIRECT, "bob", "direct-1", (DIRECTLY, 900), "CONFIRMED"),
    (UNKNOWN, "bob", "direct-2", (DIRECTLY, 60), "UNKNOWN"),
)


def payment() -> str:
    """Payments of sagas, and two direct ones."""
    cancelled = payment_body(PAID_B, B, 700, "CANCELLED")
    return (
        HEARTBEAT
        + "".join(payment_row(*row) for row in PAYMENTS)
        + answer("CancelPayment", "bob", f"{CANCEL_B}:cancel_payment", cancelled)
    )


_ANSWERS = {"CONFIRMED": "ANSWERED", "DECLINED": "REFUSED", "CANCELLED": "CANCELLED"}


def payment_row(
    payment_id: str, user: str, request_id: str, paid: tuple[str, int], state: str
) -> str:
    """``paid``: the order, and the amount."""
    cancelled = state == "CANCELLED"
    script = insert(
        "payments",
        "payment_id payment_key user_id request_id order_id amount_minor state"
        " gateway_transaction_id failure_code cancel_reason cancel_request_time refunded_minor"
        " due_time",
        *(payment_id, _key(payment_id), user, request_id, *paid, state),
        *(_transaction(payment_id, state), "REJECT" if state == "DECLINED" else None),
        *(("r", NOW, paid[1]) if cancelled else (None, None, 0)),
        NOW if state == "UNKNOWN" else None,
    )
    if state in _ANSWERS:
        body = payment_body(payment_id, *paid, state) | {"user_id": user}
        script += answer("ConfirmPayment", user, request_id, body, _ANSWERS[state])
    return script


def _key(payment_id: str) -> str:
    return f"key-{payment_id[-2:]}"


def _transaction(payment_id: str, state: str) -> str | None:
    return f"t {_key(payment_id)}" if state in {"CONFIRMED", "CANCELLED"} else None


def payment_body(payment_id: str, order_id: str, amount: int, state: str) -> dict[str, Any]:
    """The body of the answer about a payment of bob."""
    return {
        "payment_id": payment_id,
        "user_id": "bob",
        "order_id": order_id,
        "payment_key": _key(payment_id),
        "amount": {"currency_code": "KRW", "amount_minor": amount},
        "state": state,
        "gateway": "toss",
        "gateway_transaction_id": _transaction(payment_id, state),
        "failure_code": "REJECT" if state == "DECLINED" else None,
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
    script += f"UPDATE payments SET transaction_key = 'c' WHERE payment_key = '{_key(PAID_B)}';"
    on_gateway(record, script)


def gateway_charge(key: str, order_id: str, amount: int, left: int) -> str:
    status = "DONE" if left else "CANCELED"
    return (
        f"INSERT INTO payments VALUES ('{key}', '{order_id}', '{status}', 'KRW', {amount}, {left},"
        f" 't {key}', 'then', 'then', NULL);\n"
        f"INSERT INTO answers VALUES ('POST /v1/payments/confirm', 'confirm:{key}', 200,"
        f""" '{{"paymentKey": "{key}", "lastTransactionKey": "t {key}"}}');\n"""
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


BOOKS: Final = {"balance": balance, "coupon": coupon, "order": order, "payment": payment}
