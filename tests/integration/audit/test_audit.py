"""Books that balance, or soon will: what is in flight, and what another pass no longer finds."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from deploy.audit import audit as audit_module
from deploy.audit.audit import Limits, audit
from deploy.audit.audit_pass import Note
from deploy.audit.errors import CannotAudit
from deploy.audit.report import as_json
from deploy.audit.snapshots import Books as Snapshots
from deploy.audit.snapshots import take_snapshots
from deploy.audit.table import as_text
from tests.integration.audit.books import (
    BEFORE,
    COUPON_A,
    PAID_A,
    PAY_A,
    PAY_C,
    PAY_D,
    PRODUCT,
    UNKNOWN,
    A,
    C,
    D,
    redemption,
)
from tests.integration.audit.conftest import Books
from tests.integration.audit.payment_books import gateway_charge

ONE_PASS = Limits(settle_s=0.0)
MANY_PASSES = Limits(settle_s=60.0)
STUCK = "'2000-01-01'"
"""The time of work that nothing moves."""
NEEDS_ATTENTION = f"UPDATE sagas SET state = 'NEEDS_ATTENTION' WHERE saga_id = '{PAY_D}'"


async def test_clean_books_pass_with_their_figures(books: Books) -> None:
    report = await audit(books.sources, ONE_PASS)
    text = as_text(report, details=True)
    assert report.holds, text
    assert [line.invariant for line in report.lines] == [f"I{number}" for number in range(1, 9)]
    for figure in (
        "3 accounts, 9 entries, 2 of them refunds",
        "KRW 15,000 charged = 11,650 left + 3,350 spent",
        "orders paid by balance KRW 3,000, KRW 250 under way, KRW 100 by 1 direct deductions",
        "orders paid through the gateway KRW 1,500, KRW 900 by 2 direct payments",
        "gateway KRW 3,160 captured - 700 refunded = 1,500 paid by orders + 60 under way + 900",
        "2 products, 103 stocked = 76 free + 6 reserved + 21 sold",
        "3 seats of 1 products = 1 free + 1 reserved + 1 sold",
        "2 campaigns, 5 coupons issued of 8",
        "orders saved by coupons KRW 500",
        "9 orders (2 paid, 2 cancelled, 2 expired, 2 pending, 1 being paid or cancelled)",
        "4 charges at the gateway, 5 payments",
        "11 answers about balances",
    ):
        assert figure in text
    document = json.loads(as_json(report))
    assert document["holds"]
    assert len(document["invariants"]) == 8


async def test_round_sums_are_written_out(books: Books) -> None:
    books.change(
        "order",
        f"UPDATE products SET stocked = 999997 WHERE product_id = '{PRODUCT}';"
        "DELETE FROM stock_entries WHERE kind = 'RESTOCKED';"
        "UPDATE stock_entries SET quantity = 999997, stocked_after = 999997"
        f" WHERE product_id = '{PRODUCT}';",
    )
    assert "1,000,000 stocked = 999,973 free" in as_text(
        await audit(books.sources, ONE_PASS), details=True
    )


async def test_what_moves_is_listed_and_is_no_breach(books: Books) -> None:
    report = await audit(books.sources, ONE_PASS)
    assert report.notes[Note.UNDER_WAY] == (
        f"order {D}: deduction of KRW 250, by saga {PAY_D}",
        f"payment {UNKNOWN} key key-35: UNKNOWN, 60 at the gateway",
    )
    assert not any(texts for note, texts in report.notes.items() if note is not Note.UNDER_WAY)


# -- what is overdue -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "script", "named"),
    [
        (
            "order",
            f"UPDATE sagas SET lease_until = {STUCK} WHERE saga_id = '{PAY_D}'",
            f"saga {PAY_D} of order {D}, begun",
        ),
        (
            "order",
            f"{NEEDS_ATTENTION}; UPDATE sagas SET lease_until = {STUCK}",
            "is NEEDS_ATTENTION and due since",
        ),
        (
            "order",
            f"UPDATE orders SET expire_time = '{BEFORE}' WHERE order_id = '{C}'",
            f"order {C} is PENDING, to be paid until",
        ),
        (
            "payment",
            f"UPDATE payments SET due_time = {STUCK} WHERE payment_id = '{UNKNOWN}'",
            f"payment {UNKNOWN} of order elsewhere is UNKNOWN and due since",
        ),
    ],
    ids=["saga", "saga that needs attention", "pending order", "payment"],
)
@pytest.mark.parametrize("stopped_for", ["", "1 day", "10 years"])
async def test_overdue_is_the_same_while_running_and_stopped(
    books: Books, where: str, script: str, named: str, stopped_for: str
) -> None:
    """A stopped stack is a book whose times are older; its database server has just started."""
    books.change(where, script)
    if stopped_for:
        books.shift(where, stopped_for)
    report = await audit(books.sources, ONE_PASS)
    assert "I6" in {line.invariant for line in report.lines if not line.holds}
    assert named in as_text(report, details=True)


@pytest.mark.parametrize("stopped_for", ["1 day", "10 years"])
async def test_what_moved_is_not_overdue_when_the_stack_is_stopped(
    books: Books, stopped_for: str
) -> None:
    for service in ("order", "payment"):
        books.shift(service, stopped_for)
    report = await audit(books.sources, ONE_PASS)
    late = [text for line in report.lines if line.invariant == "I6" for text in line.differences]
    assert not late


async def test_answers_are_not_required_after_30_days(books: Books) -> None:
    for where in ("balance", "coupon", "order", "payment"):
        books.shift(where, "31 days")
        books.change(where, "DELETE FROM answers WHERE state <> 'CANCELLED'")
    report = await audit(books.sources, ONE_PASS)
    assert report.holds, as_text(report, details=True)


# -- several passes --------------------------------------------------------------------------------


def _between_passes(monkeypatch: pytest.MonkeyPatch, change: Callable[[int], None]) -> None:
    """Call ``change`` instead of each pause, with the number of the pause."""
    pauses = 0

    async def sleep(_delay_s: float) -> None:
        nonlocal pauses
        pauses += 1
        change(pauses)

    monkeypatch.setattr(audit_module, "asyncio", SimpleNamespace(sleep=sleep))


@pytest.mark.parametrize("another", [False, True], ids=["gone", "another"])
async def test_difference_not_found_again_is_no_breach(
    books: Books, monkeypatch: pytest.MonkeyPatch, *, another: bool
) -> None:
    books.change("gateway", gateway_charge("early-0", "x", 5, 5))

    def change(number: int) -> None:
        books.change("gateway", f"DELETE FROM payments WHERE payment_key = 'early-{number - 1}'")
        if another:
            books.change("gateway", gateway_charge(f"early-{number}", "x", 5, 5))

    _between_passes(monkeypatch, change)
    report = await audit(books.sources, MANY_PASSES)
    assert report.holds, as_text(report, details=True)
    assert report.passes == 2


async def test_difference_found_again_is_a_breach(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.change("gateway", gateway_charge("stays", "x", 5, 5))
    books.change("gateway", gateway_charge("passes", "x", 5, 5))
    now_s = 0.0

    def change(_number: int) -> None:
        nonlocal now_s
        now_s += 20.0
        books.change("gateway", "DELETE FROM payments WHERE payment_key = 'passes'")

    monkeypatch.setattr(audit_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    _between_passes(monkeypatch, change)
    report = await audit(books.sources, MANY_PASSES)
    assert report.passes == 4
    assert "key stays: 5 captured" in as_text(report, details=True)
    assert "passes" not in as_text(report, details=True)


async def test_difference_within_a_snapshot_needs_one_pass(books: Books) -> None:
    books.change(
        "balance", "UPDATE accounts SET available_minor = available_minor - 1 WHERE user_id = 'ann'"
    )
    assert (await audit(books.sources, MANY_PASSES)).passes == 1


# -- many differences ------------------------------------------------------------------------------


async def test_many_differences_are_listed_in_part_and_all_counted(books: Books) -> None:
    books.change(
        "balance",
        "INSERT INTO accounts SELECT 'user-' || n, 'KRW', 5, 1, now(), 5, 1"
        " FROM generate_series(1, 1500) AS n",
    )
    report = await audit(books.sources, ONE_PASS)
    text = as_text(report)
    line = next(line for line in report.lines if line.invariant == "I2")
    assert len(line.differences) + line.more == 1_500
    assert "1,500 differ" in text
    assert "and 1,490 more" in text
    assert text.count("account of user-") == 10


async def test_second_row_with_the_same_key_has_no_match(books: Books) -> None:
    books.change(
        "coupon",
        "ALTER TABLE redemptions DROP CONSTRAINT redemptions_pkey;"
        "DROP INDEX redemptions_live_once; ALTER TABLE answers DROP CONSTRAINT answers_pkey;"
        + redemption("ann", PAY_A, COUPON_A, order_id=A, order_amount=5_000, discount=500),
    )
    report = await audit(books.sources, ONE_PASS)
    assert f"saga {PAY_A} of ann: redemption of KRW 500, and no such saga" in as_text(
        report, details=True
    )


# -- snapshots -------------------------------------------------------------------------------------


def record_of(taken: Snapshots) -> sqlite3.Connection:
    assert isinstance(taken.gateway, sqlite3.Connection)
    return taken.gateway


async def test_snapshots_are_repeatable_read_and_read_only(books: Books) -> None:
    async with take_snapshots(books.sources) as taken:
        for service, connection in taken.databases.items():
            who = await connection.scalar(sa.text("SELECT current_user"))
            assert who == f"tally_{service}_audit"
            level = await connection.scalar(sa.text("SHOW transaction_isolation"))
            assert level == "repeatable read"
            assert await connection.scalar(sa.text("SHOW transaction_read_only")) == "on"
    with pytest.raises(CannotAudit, match="readonly database"):
        async with take_snapshots(books.sources) as taken:
            record_of(taken).execute("DELETE FROM payments")
    async with take_snapshots(books.sources) as taken:
        with pytest.raises(DBAPIError):
            await taken["order"].execute(sa.text("DELETE FROM orders"))


async def test_change_after_the_snapshot_is_not_seen(books: Books) -> None:
    books.change("payment", "SELECT 1")
    count = sa.text("SELECT count(*) FROM answers")
    async with take_snapshots(books.sources) as taken:
        before = await taken["payment"].scalar(count)
        books.change("payment", "DELETE FROM answers")
        books.change("gateway", "DELETE FROM payments WHERE payment_key <> ''")
        assert await taken["payment"].scalar(count) == before
        assert record_of(taken).execute("SELECT count(*) FROM payments").fetchone()[0] == 5


async def test_effect_of_another_user_is_not_the_sagas(books: Books) -> None:
    books.change(
        "payment",
        f"UPDATE payments SET user_id = 'eve' WHERE payment_id = '{PAID_A}';"
        f"UPDATE answers SET scope = 'eve' WHERE request_id = '{PAY_A}:confirm_payment'",
    )
    text = as_text(await audit(books.sources, ONE_PASS), details=True)
    assert f"order {A}: KRW 1,500 recorded, and there is no payment" in text
    assert f"saga {PAY_A} of eve: payment of KRW 1,500, and no such saga" in text


async def test_compensated_attempt_needs_no_effect(books: Books) -> None:
    """No effect is as good as one that was undone."""
    books.change("payment", f"DELETE FROM payments WHERE request_id = '{PAY_C}:confirm_payment'")
    books.change("payment", f"DELETE FROM answers WHERE request_id = '{PAY_C}:confirm_payment'")
    assert (await audit(books.sources, ONE_PASS)).holds
