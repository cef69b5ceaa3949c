"""What is not a breach, because work that moves explains it or a person's decision records it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from deploy.audit.audit import Limits, audit
from deploy.audit.audit_pass import Note
from deploy.audit.table import as_text
from tests.integration.audit.books import (
    CANCEL_B,
    DECLINED_C,
    DIRECT,
    NOW,
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
    answer,
)
from tests.integration.audit.changes import (
    CHARGED_AGAIN,
    COUPON_IN_USE,
    PAID_AGAIN,
    REFUSED_REFUND_B,
    TO_BE_REFUNDED,
    cancelling,
    closed,
    dashboard,
    outside,
    steps,
)
from tests.integration.audit.conftest import Books
from tests.integration.audit.payment_books import gateway_charge, payment_body

ONE_PASS = Limits(settle_s=0.0)


@dataclass(frozen=True)
class Explained:
    name: str
    changes: dict[str, str]
    """SQL, by service."""
    note: Note | None = None
    listed: str = ""
    """A part of the note."""
    figure: str = ""
    """A part of the text."""


EXPLAINED = (
    Explained(
        "what a person settled as charged was given back later",
        {
            "payment": f"UPDATE payments SET resolution_reason = 'seen' WHERE payment_id ="
            f" '{PAID_B}';"
            + answer("ResolvePayment", "", "settle-1", payment_body(PAID_B, B, 700, "CONFIRMED"))
        },
    ),
    Explained(
        "a refund is under way for a second, of an old payment",
        {"payment": TO_BE_REFUNDED.format(f"'{NOW}'", "NULL")},
        Note.GIVING_BACK,
        f"payment {DIRECT} key key-34: CONFIRMED, 900 at the gateway",
        "1,500 paid by orders + 60 under way + 900 being given back",
    ),
    Explained(
        "the gateway refused a refund",
        {"payment": TO_BE_REFUNDED.format("NULL", "'NOT_CANCELABLE'")},
        Note.NEEDS_ATTENTION,
        f"payment {DIRECT} of order elsewhere: the gateway refused to refund KRW 900",
        "+ 900 being given back",
    ),
    Explained(
        "a cancellation is under way",
        {"order": cancelling("RUNNING"), "coupon": COUPON_IN_USE},
        Note.GIVING_BACK,
        f"order {B}: redemption of KRW 300, by saga {CANCEL_B}",
        "KRW 300 being given back",
    ),
    Explained(
        "a cancellation needs attention and moves",
        {"order": cancelling("NEEDS_ATTENTION"), "coupon": COUPON_IN_USE},
        Note.NEEDS_ATTENTION,
        f"saga {CANCEL_B} of order {B}, begun",
    ),
    Explained(
        "an attempt needs attention and moves",
        {"order": f"UPDATE sagas SET state = 'NEEDS_ATTENTION' WHERE saga_id = '{PAY_D}'"},
        Note.NEEDS_ATTENTION,
        f"saga {PAY_D} of order {D}, begun",
    ),
    Explained(
        "an attempt of an unknown plan moves",
        {"order": f"UPDATE sagas SET plan_version = 9 WHERE saga_id = '{PAY_D}'"},
        Note.NEEDS_ATTENTION,
        "of a plan that this release does not know (PAY_ORDER version 9)",
    ),
    Explained(
        "a closed attempt is being undone",
        {"order": closed(PAY_D, "RESOLVING", D, steps(deduct_balance="DONE"))},
        Note.GIVING_BACK,
        f"order {D}: deduction of KRW 250, by saga {PAY_D}",
        "KRW 250 being given back",
    ),
    Explained(
        "a closed cancellation waits for a refund that the gateway refused",
        {
            "order": f"UPDATE sagas SET state = 'RESOLVING', resolution_reason = 'why', steps ="
            f" {steps(cancel_payment='UNKNOWN', refund_deduction='DONE', restore_coupon='DONE')}"
            f" WHERE saga_id = '{CANCEL_B}'",
            "payment": REFUSED_REFUND_B,
            "gateway": CHARGED_AGAIN,
        },
        Note.NEEDS_ATTENTION,
        f"saga {CANCEL_B} of order {B} is RESOLVING, and waits for a payment that is not refunded",
    ),
    Explained(
        "a deduction stands",
        {"order": closed(PAY_D, "RESOLVED", D, steps(deduct_balance=("a gift", 250)))},
        Note.STANDING,
        f"order {D}: deduction of KRW 250, left by saga {PAY_D}: a gift",
        "KRW 250 standing",
    ),
    Explained(
        "a payment stands although its order is cancelled",
        {
            "order": f"UPDATE sagas SET state = 'RESOLVED', resolution_reason = 'why', steps ="
            f" {steps(cancel_payment=('kept', 700), refund_deduction='DONE')}"
            f" WHERE saga_id = '{CANCEL_B}'",
            "payment": PAID_AGAIN,
            "gateway": CHARGED_AGAIN,
        },
        Note.STANDING,
        f"order {B}: payment of KRW 700, left by saga {CANCEL_B}: kept",
        "+ 700 standing",
    ),
    Explained(
        "a charge came late, is cancelled and is being given back",
        {
            "payment": "UPDATE payments SET state = 'CONFIRMED', failure_code = NULL,"
            " gateway_transaction_id = 't key-33', cancel_reason = 'r', cancel_request_id = 'c',"
            f" cancel_request_time = '{NOW}', due_time = '{NOW}'"
            f" WHERE payment_id = '{DECLINED_C}';"
            "UPDATE answers SET state = 'CANCELLED', body = NULL"
            f" WHERE request_id = '{PAY_C}:confirm_payment'",
            "gateway": "DELETE FROM payments WHERE payment_key = 'key-33';"
            + gateway_charge("key-33", C, 600, 600),
        },
        Note.GIVING_BACK,
        f"payment {DECLINED_C} key key-33: CONFIRMED, 600 at the gateway",
        "+ 600 being given back",
    ),
    Explained(
        "a payment stood and was given back later",
        {
            "order": f"UPDATE sagas SET state = 'RESOLVED', resolution_reason = 'why', steps ="
            f" {steps(cancel_payment=('kept', 700), refund_deduction='DONE')}"
            f" WHERE saga_id = '{CANCEL_B}'",
        },
        Note.STANDING,
        f"order {B}: payment of KRW 700, left by saga {CANCEL_B}: kept; given back since",
    ),
    Explained(
        "an earlier release closed an attempt that is undone",
        {
            "order": f"UPDATE sagas SET state = 'RESOLVED', resolution_reason = 'why',"
            f" plan_version = 1 WHERE saga_id = '{PAY_C}'"
        },
    ),
    Explained(
        "a payment was refunded in part in the gateway's dashboard",
        {"payment": outside(DIRECT, 300), "gateway": dashboard("key-34", 300, 600)},
        Note.REFUNDED_OUTSIDE,
        f"payment {DIRECT} of order elsewhere: KRW 300 of 900: by hand",
        "3,160 captured - 700 refunded - 300 refunded outside Tally = 1,500 paid by orders",
    ),
    Explained(
        "a payment was refunded in part by other means",
        {"payment": outside(DIRECT, 300)},
        Note.REFUNDED_OUTSIDE,
        f"payment {DIRECT} of order elsewhere: KRW 300 of 900",
        "3,160 captured - 700 refunded - 300 refunded outside Tally = 1,500 paid by orders",
    ),
    Explained(
        "a paid order's payment was refunded in part",
        {"payment": outside(PAID_A, 300), "gateway": dashboard("key-31", 300, 1_200)},
        Note.REFUNDED_OUTSIDE,
        f"payment {PAID_A} of order {A}: KRW 300 of 1500",
        "- 300 refunded outside Tally = 1,200 paid by orders + 60 under way + 900 direct",
    ),
    Explained(
        "a paid order's payment was refunded as a whole",
        {
            "payment": outside(PAID_A, 1_500, state="CANCELLED")
            + "UPDATE answers SET state = 'CANCELLED', body = NULL WHERE method = 'ConfirmPayment'"
            " AND scope = 'ann' AND state = 'ANSWERED'",
            "gateway": dashboard("key-31", 1_500, 0),
        },
        Note.REFUNDED_OUTSIDE,
        f"payment {PAID_A} of order {A}: KRW 1500 of 1500",
        "- 1,500 refunded outside Tally = 60 under way + 900 direct",
    ),
    Explained(
        "payments of a paid order, a direct one and one to be refunded were refunded in part",
        {
            "payment": outside(PAID_A, 300)
            + outside(DIRECT, 200)
            + TO_BE_REFUNDED.format(f"'{NOW}'", "NULL"),
            "gateway": dashboard("key-31", 300, 1_200),
        },
        Note.REFUNDED_OUTSIDE,
        f"payment {DIRECT} of order elsewhere: KRW 200 of 900",
        "- 700 refunded - 500 refunded outside Tally = 1,200 paid by orders + 60 under way"
        " + 700 being given back",
    ),
    Explained(
        "an earlier release restocked",
        {"order": "UPDATE stock_entries SET quantity = NULL WHERE kind = 'RESTOCKED'"},
    ),
    Explained(
        "a product is older than the journal",
        {
            "order": f"DELETE FROM stock_entries WHERE product_id = '{PRODUCT}';"
            f" DELETE FROM answers WHERE body LIKE '%\"{PRODUCT}\"%' AND method IN"
            " ('CreateProduct', 'RestockProduct'); INSERT INTO stock_entries"
            " SELECT 'OPENING', product_id, product_id, stocked, stocked, version, update_time"
            f" FROM products WHERE product_id = '{PRODUCT}'"
        },
    ),
    Explained(
        "a closed saga was closed again for another reason",
        {
            "order": "".join(
                answer(
                    "ResolveSaga",
                    "",
                    reason,
                    {
                        "saga_id": PAY_D,
                        "order_id": D,
                        "kind": "PAY_ORDER",
                        "resolution_reason": reason,
                    },
                )
                for reason in ("first", "why")
            )
            + closed(PAY_D, "RESOLVING", D, steps(deduct_balance="DONE"))
        },
    ),
)


@pytest.mark.parametrize("one", EXPLAINED, ids=lambda one: one.name)
async def test_what_is_explained_is_listed_and_no_breach(books: Books, one: Explained) -> None:
    for where, script in one.changes.items():
        books.change(where, script)
    report = await audit(books.sources, ONE_PASS)
    text = as_text(report, details=True)
    assert report.holds, text
    assert one.figure in text
    assert one.note is None or any(one.listed in note for note in report.notes[one.note]), text


# -- the same, and not explained -------------------------------------------------------------------

UNEXPLAINED = {
    "a payment was given back, and another amount stands": (
        {
            "order": f"UPDATE sagas SET state = 'RESOLVED', resolution_reason = 'why', steps ="
            f" {steps(cancel_payment=('kept', 699))} WHERE saga_id = '{CANCEL_B}'"
        },
        f"order {B}: KRW 699 of the payment stand, and 0 are in force",
    ),
    "a deduction stands with another amount": (
        {"order": closed(PAY_D, "RESOLVED", D, steps(deduct_balance=("a gift", 249)))},
        f"order {D}: KRW 249 of the deduction stand, and 250 are in force",
    ),
    "a closed attempt left a deduction": (
        {"order": closed(PAY_D, "RESOLVED", D, steps(deduct_balance="COMPENSATED"))},
        f"order {D}: deduction of KRW 250, and this attempt paid nothing",
    ),
    "an earlier release closed an attempt and left a deduction": (
        {"order": closed(PAY_D, "RESOLVED", D, steps(deduct_balance="DONE"), plan=1)},
        "call ResolveSaga for that saga, which undoes it",
    ),
    "an earlier release closed a cancellation and left a coupon": (
        {
            "order": f"UPDATE sagas SET state = 'RESOLVED', resolution_reason = 'why',"
            f" plan_version = 1, steps = {steps(restore_coupon='PENDING')}"
            f" WHERE saga_id = '{CANCEL_B}'",
            "coupon": COUPON_IN_USE,
        },
        f"order {B}: redemption of KRW 300 is unaccounted",
    ),
    "a closed attempt's payment has no cancellation": (
        {
            "order": cancelling("RUNNING")
            + f"; UPDATE sagas SET steps = {steps(cancel_payment='UNKNOWN')}"
            f" WHERE saga_id = '{CANCEL_B}'",
            "payment": PAID_AGAIN,
            "gateway": CHARGED_AGAIN,
        },
        f"order {B}: payment of KRW 700 is to be given back, and has no cancellation",
    ),
    "an attempt that was closed has charged": (
        {
            "order": f"DELETE FROM sagas WHERE saga_id = '{CANCEL_B}';"
            f"UPDATE orders SET discount_minor = 0, paid_by_balance_minor = 0, coupon_id = NULL,"
            f" paid_by_gateway_minor = 0, payment_id = NULL WHERE order_id = '{B}';"
            f"UPDATE sagas SET state = 'RESOLVED', resolution_reason = 'nothing was charged',"
            f' plan_version = 1, failure = \'{{"reason": "r"}}\','
            f" steps = {steps(confirm_payment='UNKNOWN')} WHERE saga_id = '{PAY_B}'",
            "payment": PAID_AGAIN,
            "gateway": CHARGED_AGAIN,
        },
        f"order {B}: payment of KRW 700 is unaccounted",
    ),
}


@pytest.mark.parametrize("name", UNEXPLAINED)
async def test_what_is_not_explained_is_a_breach(books: Books, name: str) -> None:
    changes, reported = UNEXPLAINED[name]
    for where, script in changes.items():
        books.change(where, script)
    report = await audit(books.sources, ONE_PASS)
    assert not report.holds
    assert reported in as_text(report, details=True)
