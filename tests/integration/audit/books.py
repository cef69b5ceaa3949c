"""A small clean book over all services, as plain rows: what the services would have written.

| order | user | what became of it |
|-------|------|-------------------|
| A | ann | 5,000 paid: coupon 500, balance 3,000, gateway 1,500 |
| B | bob | 2,000 paid by coupon 300, balance 1,000, gateway 700; cancelled, all given back |
| C | ann | an attempt with balance 400 and a declined card, undone; pending |
| D | bob | being paid by balance 250 |
| E, F | ann | expired; cancelled before it was paid |

Bob deducts 100 and pays 900 directly; another direct payment of 60 is charged and still unknown.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from deploy.local.gateway.ledger import Ledger

NOW: Final = "now()"


def uid(number: int) -> str:
    """A UUID that is easy to tell in a failing test."""
    return f"01900000-0000-7000-8000-{number:012d}"


PRODUCT, COUPON_A, COUPON_B, CAMPAIGN = uid(1), uid(2), uid(3), uid(4)
A, B, C, D, E, F = (uid(number) for number in range(11, 17))
PAY_A, PAY_B, PAY_C, PAY_D, CANCEL_B = (uid(number) for number in range(21, 26))
PAID_A, PAID_B, DECLINED_C, DIRECT, UNKNOWN = (uid(number) for number in range(31, 36))


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if value == NOW or isinstance(value, int):
        return str(value)
    if isinstance(value, dict | list):
        value = json.dumps(value)
    return "'" + str(value).replace("'", "''") + "'"


def insert(table: str, **row: Any) -> str:
    return (
        f"INSERT INTO {table} ({', '.join(row)})"
        f" VALUES ({', '.join(map(_literal, row.values()))});\n"
    )


def answer(method: str, scope: str, request_id: str, body: Any, state: str = "ANSWERED") -> str:
    return insert(
        "answers",
        method=method,
        scope=scope,
        request_id=request_id,
        state=state,
        digest="",
        body=None if state == "CANCELLED" else json.dumps(body),
    )


# -- balance -------------------------------------------------------------------------------------


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
    return _account("ann", 100, ann) + _account("bob", 200, bob) + _placeholder("eve")


_METHODS = {"CHARGE": "ChargeBalance", "DEDUCT": "DeductBalance", "REFUND": "RefundDeduction"}


def _account(user: str, first_id: int, entries: list[tuple[str, int, str, Any, Any]]) -> str:
    script, available = "", 0
    undone = {refund_of for *_, refund_of in entries}
    for sequence, (kind, amount, request_id, order_id, refund_of) in enumerate(entries, 1):
        available += amount
        told = {
            "entry_id": uid(first_id + sequence),
            "sequence": sequence,
            "amount_minor": amount,
            "balance_after_minor": available,
        }
        script += insert(
            "ledger_entries",
            user_id=user,
            currency_code="KRW",
            kind=kind,
            request_id=request_id,
            order_id=order_id,
            refund_of=refund_of,
            create_time=NOW,
            **told,
        )
        state = "CANCELLED" if request_id in undone else "ANSWERED"
        script += answer(_METHODS[kind], user, request_id, told, state)
    return script + insert(
        "accounts",
        user_id=user,
        currency_code="KRW",
        available_minor=available,
        version=len(entries),
        update_time=NOW,
    )


def _placeholder(user: str) -> str:
    """An account about to be opened, and a deduction that was cancelled before it came."""
    return (
        insert(
            "accounts",
            user_id=user,
            currency_code="KRW",
            available_minor=0,
            version=0,
            update_time=NOW,
        )
        + answer("DeductBalance", user, "never-came", None, "CANCELLED")
        + answer("RefundDeduction", user, "refund-of-nothing", None)
    )


# -- coupon --------------------------------------------------------------------------------------


def coupon() -> str:
    """A campaign with two coupons, one in use and one given back."""
    uses = {
        "redeem_request_id": f"{PAY_A}:redeem_coupon",
        "order_id": A,
        "redeem_time": NOW,
    }
    return (
        insert(
            "campaigns",
            campaign_id=CAMPAIGN,
            name="c",
            currency_code="KRW",
            fixed_discount_minor=500,
            quantity=3,
            issued=2,
            start_time=NOW,
            end_time="2100-01-01",
            coupon_lifetime_us=1,
            request_id="campaign-1",
            create_time=NOW,
        )
        + _coupon(COUPON_A, "ann", 1, **uses)
        + _coupon(COUPON_B, "bob", 2)
        + redemption("ann", PAY_A, COUPON_A, order_id=A, order_amount=5_000, discount=500)
        + redemption(
            "bob", PAY_B, COUPON_B, order_id=B, order_amount=2_000, discount=300, restored=True
        )
    )


def _coupon(coupon_id: str, user: str, number: int, **use: Any) -> str:
    told = {"coupon_id": coupon_id, "issue_number": number}
    return insert(
        "coupons",
        campaign_id=CAMPAIGN,
        user_id=user,
        request_id="issue-1",
        issue_time=NOW,
        expire_time="2100-01-01",
        **told,
        **use,
    ) + answer("IssueCoupon", user, "issue-1", told)


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
        user_id=user,
        request_id=request_id,
        coupon_id=coupon_id,
        order_id=order_id,
        currency_code="KRW",
        order_amount_minor=order_amount,
        discount_minor=discount,
        redeem_time=NOW,
        restore_request_id="restore-1" if restored else None,
        restore_time=NOW if restored else None,
    ) + answer("RedeemCoupon", user, request_id, {}, "CANCELLED" if restored else "ANSWERED")


# -- payment -------------------------------------------------------------------------------------


def payment() -> str:
    """Payments of sagas, and two direct ones."""
    return (
        payment_row(PAID_A, "ann", f"{PAY_A}:confirm_payment", A, amount=1_500, state="CONFIRMED")
        + payment_row(PAID_B, "bob", f"{PAY_B}:confirm_payment", B, amount=700, state="CANCELLED")
        + payment_row(
            DECLINED_C, "ann", f"{PAY_C}:confirm_payment", C, amount=600, state="DECLINED"
        )
        + payment_row(DIRECT, "bob", "direct-1", "elsewhere", amount=900, state="CONFIRMED")
        + payment_row(UNKNOWN, "bob", "direct-2", "elsewhere", amount=60, state="UNKNOWN")
    )


_ANSWERS = {"CONFIRMED": "ANSWERED", "DECLINED": "REFUSED", "CANCELLED": "CANCELLED"}


def payment_row(
    payment_id: str, user: str, request_id: str, order_id: str, *, amount: int, state: str
) -> str:
    charged = state in {"CONFIRMED", "CANCELLED"}
    script = insert(
        "payments",
        payment_id=payment_id,
        payment_key=f"key-{payment_id[-2:]}",
        user_id=user,
        request_id=request_id,
        order_id=order_id,
        currency_code="KRW",
        amount_minor=amount,
        gateway="toss",
        state=state,
        gateway_transaction_id="t" if charged else None,
        failure_code="REJECT" if state == "DECLINED" else None,
        cancel_reason="r" if state == "CANCELLED" else None,
        due_time=NOW if state == "UNKNOWN" else None,
        tries=0,
        version=1,
        create_time=NOW,
        update_time=NOW,
    )
    if state in _ANSWERS:
        told = {"payment_id": payment_id}
        script += answer("ConfirmPayment", user, request_id, told, _ANSWERS[state])
    return script


def write_gateway(record: Path) -> None:
    """The gateway's record of the same payments."""
    Ledger(record).close()
    for payment_id, order_id, amount, refunded in (
        (PAID_A, A, 1_500, 0),
        (PAID_B, B, 700, 700),
        (DIRECT, "elsewhere", 900, 0),
        (UNKNOWN, "elsewhere", 60, 0),
    ):
        charge(record, f"key-{payment_id[-2:]}", order_id, amount, refunded)
    on_gateway(
        record,
        f"INSERT INTO payments VALUES ('key-{DECLINED_C[-2:]}', '{C}', 'ABORTED', 'KRW', 600, 600,"
        " 'declined', 'then', NULL, 'REJECT')",
    )


def charge(record: Path, key: str, order_id: str, amount: int, refunded: int) -> None:
    status = "CANCELED" if refunded else "DONE"
    on_gateway(
        record,
        f"INSERT INTO payments VALUES ('{key}', '{order_id}', '{status}', 'KRW', {amount},"
        f" {amount - refunded}, 't {key}', 'then', 'then', NULL)",
    )
    if refunded:
        on_gateway(
            record, f"INSERT INTO cancels VALUES ('c {key}', '{key}', {refunded}, 'r', 'then')"
        )


def on_gateway(record: Path, statement: str) -> None:
    with closing(sqlite3.connect(record)) as connection, connection:
        connection.execute(statement)


# -- order ---------------------------------------------------------------------------------------


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
        insert(
            "products",
            product_id=PRODUCT,
            name="p",
            currency_code="KRW",
            price_minor=250,
            stocked=100,
            reserved=4 + 1,
            sold=20,
            version=1,
            create_time=NOW,
            update_time=NOW,
        )
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
        + answer("PayOrder", "ann", f"pay-{PAY_A}", {"order_id": A})
        + answer("PayOrder", "bob", f"pay-{PAY_B}", {"order_id": B})
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
    discount, by_balance, by_gateway = paid
    return (
        insert(
            "orders",
            order_id=order_id,
            user_id=user,
            request_id=f"create-{order_id}",
            currency_code="KRW",
            subtotal_minor=quantity * 250,
            discount_minor=discount,
            paid_by_balance_minor=by_balance,
            paid_by_gateway_minor=by_gateway,
            coupon_id=coupon,
            payment_id=payment,
            state=state,
            failure_reason="",
            version=1,
            create_time=NOW,
            expire_time="2100-01-01",
            update_time=NOW,
        )
        + insert(
            "order_items",
            order_id=order_id,
            product_id=PRODUCT,
            quantity=quantity,
            unit_price_minor=250,
        )
        + answer("CreateOrder", user, f"create-{order_id}", {"order_id": order_id})
    )


def saga(
    saga_id: str, order_id: str, user: str, state: str, steps: str, *, kind: str = "PAY_ORDER"
) -> str:
    pairs = [step.split() for step in steps.split(", ")]
    return insert(
        "sagas",
        saga_id=saga_id,
        kind=kind,
        plan_version=1,
        order_id=order_id,
        user_id=user,
        request_id=f"pay-{saga_id}",
        asked={},
        state=state,
        steps=[{"name": name, "state": step_state} for name, step_state in pairs],
        facts={},
        failure={"reason": "r"} if state == "COMPENSATED" else None,
        epoch=1,
        lease_until=NOW,
        attempts=0,
        last_error="",
        resolution_reason="",
        create_time=NOW,
        update_time=NOW,
    )


BOOKS: Final = {"balance": balance, "coupon": coupon, "order": order, "payment": payment}
