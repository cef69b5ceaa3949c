"""The payments of the clean books, and the gateway's record of them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from deploy.local.gateway.ledger import Ledger
from tests.integration.audit.books import (
    CANCEL_B,
    DECLINED_C,
    DIRECT,
    HEARTBEAT,
    NOW,
    PAID_A,
    PAID_B,
    PAY_A,
    PAY_B,
    PAY_C,
    UNKNOWN,
    A,
    B,
    C,
    answer,
    insert,
)

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
