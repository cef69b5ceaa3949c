"""Books that balance, or will: what is under way, and what passes when it is looked at again."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from deploy.audit import audit as auditing
from deploy.audit.__main__ import as_document, as_text
from deploy.audit.audit import Limits, audit
from deploy.audit.snapshots import snapshots
from deploy.audit.sources import CannotLook
from tests.integration.audit.books import (
    COUPON_A,
    PAID_A,
    PAY_A,
    PAY_B,
    PAY_C,
    PAY_D,
    UNKNOWN,
    A,
    B,
    C,
    D,
    redemption,
)
from tests.integration.audit.conftest import Book

AT_ONCE = Limits(settle_s=0.0)
PATIENT = Limits(settle_s=60.0)
IMPATIENT = Limits(settle_s=0.0, overdue_s=0.0)
LENIENT = Limits(settle_s=0.0, overdue_s=86_400.0)
"""The tests' server was started less than a day ago."""


async def test_a_clean_book_passes_with_its_figures(book: Book) -> None:
    report = await audit(book.sources, AT_ONCE)
    text = as_text(report)
    assert report.holds, text
    assert [line.invariant for line in report.lines] == [f"I{number}" for number in range(1, 9)]
    for figure in (
        "I2  ok      3 accounts, 9 entries, 2 of them refunds: every balance",
        "KRW 15,000 charged = 11,650 left + 3,350 spent",
        "orders paid KRW 3,000 by balance (1 direct deductions)",
        "orders paid KRW 1,500 through the gateway (2 direct payments)",
        "gateway KRW 3,160 captured - 700 refunded = 2,460",
        "1 products, 100 stocked = 75 free + 5 reserved + 20 sold",
        "2 coupons issued of 3; orders saved KRW 500",
        "6 orders (1 paid, 2 cancelled, 1 expired, 1 pending, 1 on their way)",
        "4 charges at the gateway, 5 payments",
        "11 answers about balances",
    ):
        assert figure in text
    document = json.loads(as_document(report))
    assert document["holds"]
    assert len(document["invariants"]) == 8


async def test_round_sums_are_written_out(book: Book) -> None:
    book.spoil("order", "UPDATE products SET stocked = 1000000")
    assert "1,000,000 stocked = 999,975 free" in as_text(await audit(book.sources, AT_ONCE))


async def test_what_is_under_way_is_told_and_no_breach(book: Book) -> None:
    report = await audit(book.sources, AT_ONCE)
    assert report.in_flight == (
        f"order {D}: is under way, deduction of KRW 250",
        f"payment {UNKNOWN} key key-35: UNKNOWN, 60 at the gateway",
    )


_LIVE_AGAIN = (
    "UPDATE redemptions SET restore_time = NULL, restore_request_id = NULL WHERE user_id = 'bob';"
    f"UPDATE coupons SET order_id = '{B}', redeem_time = now(),"
    f" redeem_request_id = '{PAY_B}:redeem_coupon' WHERE user_id = 'bob';"
    "UPDATE answers SET state = 'ANSWERED', body = '{}'"
    f" WHERE request_id = '{PAY_B}:redeem_coupon'"
)


@pytest.mark.parametrize(
    ("state", "explained"),
    [
        ("RUNNING", "is under way, redemption of KRW 300"),
        ("NEEDS_ATTENTION", "is under way, redemption of KRW 300"),
        ("RESOLVED", "was closed by a person, redemption of KRW 300"),
        ("COMPLETED", None),
    ],
)
async def test_a_saga_explains_a_difference_until_it_has_ended(
    book: Book, state: str, explained: str | None
) -> None:
    book.spoil("coupon", _LIVE_AGAIN)
    book.spoil(
        "order",
        f"UPDATE sagas SET state = '{state}',"
        f" resolution_reason = '{'told' if state == 'RESOLVED' else ''}'"
        f" WHERE kind = 'CANCEL_ORDER';"
        f"UPDATE orders SET state = '{'CANCELLED' if state in {'COMPLETED', 'RESOLVED'} else ''}"
        f"{'CANCELLING' if state in {'RUNNING', 'NEEDS_ATTENTION'} else ''}'"
        f" WHERE order_id = '{B}';"
        + ("" if state in {"COMPLETED", "RESOLVED"} else "UPDATE products SET sold = sold + 8"),
    )
    report = await audit(book.sources, AT_ONCE)
    assert report.holds is (explained is not None), as_text(report)
    assert any(str(explained) in told for told in report.in_flight) is (explained is not None)


@pytest.mark.parametrize(
    ("where", "script", "named"),
    [
        ("order", "SELECT 1", f"order {D} is PAYING since"),
        ("order", "SELECT 1", f"saga {PAY_D} of order {D}, begun"),
        ("payment", "SELECT 1", f"payment {UNKNOWN} of order elsewhere is UNKNOWN since"),
        (
            "order",
            f"UPDATE orders SET expire_time = '2000-01-01' WHERE order_id = '{C}'",
            f"order {C} is PENDING since",
        ),
        (
            "order",
            "UPDATE sagas SET state = 'NEEDS_ATTENTION', last_error = 'x' WHERE state = 'RUNNING'",
            "is NEEDS_ATTENTION: x",
        ),
    ],
)
async def test_what_does_not_come_to_its_end_is_overdue(
    book: Book, where: str, script: str, named: str
) -> None:
    book.spoil(where, script)
    report = await audit(book.sources, IMPATIENT)
    assert [line.invariant for line in report.lines if not line.holds] == ["I6"]
    assert named in as_text(report)


async def test_while_the_database_was_down_nothing_was_due(book: Book) -> None:
    book.spoil(
        "order",
        "UPDATE orders SET update_time = '2000-01-01', expire_time = '2000-01-01';"
        "UPDATE sagas SET create_time = '2000-01-01'",
    )
    assert (await audit(book.sources, LENIENT)).holds
    assert not (await audit(book.sources, IMPATIENT)).holds


async def test_answers_are_not_expected_for_ever(book: Book) -> None:
    old = "now() - interval '31 days'"
    book.spoil(
        "balance",
        "DELETE FROM answers WHERE state <> 'CANCELLED';"
        f"UPDATE ledger_entries SET create_time = {old}",
    )
    book.spoil(
        "coupon",
        "DELETE FROM answers WHERE state <> 'CANCELLED';"
        f"UPDATE coupons SET issue_time = {old}; UPDATE redemptions SET redeem_time = {old}",
    )
    book.spoil(
        "order",
        "DELETE FROM answers WHERE state <> 'CANCELLED';"
        f"UPDATE orders SET create_time = {old}; UPDATE sagas SET update_time = {old}",
    )
    book.spoil(
        "payment",
        "DELETE FROM answers WHERE state <> 'CANCELLED';"
        f"UPDATE payments SET update_time = {old} WHERE state <> 'UNKNOWN'",
    )
    report = await audit(book.sources, AT_ONCE)
    assert report.holds, as_text(report)


# -- looking again -------------------------------------------------------------------------------

_EXTRA = (
    "INSERT INTO payments VALUES ('{key}', 'x', 'DONE', 'KRW', 5, 5, '{key}', 'then', 'then', NULL)"
)


def _between_looks(monkeypatch: pytest.MonkeyPatch, change: Callable[[int], None]) -> None:
    """Do something instead of the pauses."""
    pauses = 0

    async def sleep(_delay_s: float) -> None:
        nonlocal pauses
        pauses += 1
        change(pauses)

    monkeypatch.setattr(auditing, "asyncio", SimpleNamespace(sleep=sleep))


async def test_a_difference_that_passes_is_none(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.spoil("gateway", _EXTRA.format(key="early"))
    _between_looks(
        monkeypatch,
        lambda _: book.spoil("gateway", "DELETE FROM payments WHERE payment_key = 'early'"),
    )
    report = await audit(book.sources, PATIENT)
    assert report.holds, as_text(report)
    assert report.looks == 2


async def test_under_load_every_look_shows_others_and_none_is_a_breach(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.spoil("gateway", _EXTRA.format(key="early-0"))

    def move(number: int) -> None:
        book.spoil("gateway", f"DELETE FROM payments WHERE payment_key = 'early-{number - 1}'")
        book.spoil("gateway", _EXTRA.format(key=f"early-{number}"))

    _between_looks(monkeypatch, move)
    report = await audit(book.sources, PATIENT)
    assert report.holds, as_text(report)
    assert report.looks == 2


async def test_a_difference_that_stays_is_a_breach(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.spoil("gateway", _EXTRA.format(key="stays"))
    book.spoil("gateway", _EXTRA.format(key="passes"))
    now_s = 0.0

    def change(_number: int) -> None:
        nonlocal now_s
        now_s += 20.0
        book.spoil("gateway", "DELETE FROM payments WHERE payment_key = 'passes'")

    monkeypatch.setattr(auditing, "time", SimpleNamespace(monotonic=lambda: now_s))
    _between_looks(monkeypatch, change)
    report = await audit(book.sources, PATIENT)
    assert report.looks == 4
    assert "key stays: 5 captured" in as_text(report)
    assert "passes" not in as_text(report)


async def test_what_one_snapshot_shows_is_not_looked_at_again(book: Book) -> None:
    book.spoil("balance", "UPDATE accounts SET available_minor = 1")
    assert (await audit(book.sources, PATIENT)).looks == 1


# -- many differences ----------------------------------------------------------------------------


async def test_many_differences_are_named_in_part_and_counted_in_full(book: Book) -> None:
    book.spoil(
        "balance",
        "INSERT INTO accounts SELECT 'user-' || n, 'KRW', 5, 1, now()"
        " FROM generate_series(1, 1500) AS n",
    )
    report = await audit(book.sources, AT_ONCE)
    text = as_text(report)
    line = next(line for line in report.lines if line.invariant == "I2")
    assert len(line.differences) + line.more == 1_500
    assert "1,500 differ" in text
    assert "and 1,490 more" in text
    assert text.count("account of user-") == 10


async def test_a_key_that_comes_twice_meets_its_match_once(book: Book) -> None:
    book.spoil(
        "coupon",
        "ALTER TABLE redemptions DROP CONSTRAINT redemptions_pkey;"
        "DROP INDEX redemptions_live_once; ALTER TABLE answers DROP CONSTRAINT answers_pkey;"
        + redemption("ann", PAY_A, COUPON_A, order_id=A, order_amount=5_000, discount=500),
    )
    report = await audit(book.sources, AT_ONCE)
    assert f"saga {PAY_A} of ann: redemption of KRW 500, and no such saga" in as_text(report)


# -- what it may do ------------------------------------------------------------------------------


async def test_it_reads_in_one_snapshot_and_can_write_nowhere(book: Book) -> None:
    async with snapshots(book.sources) as books:
        for service, connection in books.databases.items():
            who = await connection.scalar(sa.text("SELECT current_user"))
            assert who == f"tally_{service}_audit"
            level = await connection.scalar(sa.text("SHOW transaction_isolation"))
            assert level == "repeatable read"
            assert await connection.scalar(sa.text("SHOW transaction_read_only")) == "on"
    with pytest.raises(CannotLook, match="readonly database"):
        async with snapshots(book.sources) as books:
            books.gateway.execute("DELETE FROM payments")
    async with snapshots(book.sources) as books:
        with pytest.raises(DBAPIError):
            await books["order"].execute(sa.text("DELETE FROM orders"))


async def test_what_changes_after_the_snapshot_is_not_seen(book: Book) -> None:
    book.spoil("payment", "SELECT 1")
    count = sa.text("SELECT count(*) FROM answers")
    async with snapshots(book.sources) as books:
        before = await books["payment"].scalar(count)
        book.spoil("payment", "DELETE FROM answers")
        book.spoil("gateway", "DELETE FROM payments WHERE payment_key <> ''")
        assert await books["payment"].scalar(count) == before
        assert books.gateway.execute("SELECT count(*) FROM payments").fetchone()[0] == 5


async def test_a_saga_like_request_of_another_user_is_not_the_sagas(book: Book) -> None:
    book.spoil(
        "payment",
        f"UPDATE payments SET user_id = 'eve' WHERE payment_id = '{PAID_A}';"
        f"UPDATE answers SET scope = 'eve' WHERE request_id = '{PAY_A}:confirm_payment'",
    )
    text = as_text(await audit(book.sources, AT_ONCE))
    assert f"order {A}: paid KRW 1,500 so, and there is no payment" in text
    assert f"saga {PAY_A} of eve: payment of KRW 1,500, and no such saga" in text


async def test_an_attempt_that_was_undone_needs_no_effect(book: Book) -> None:
    """Nothing at all is as good as done and undone."""
    book.spoil("payment", f"DELETE FROM payments WHERE request_id = '{PAY_C}:confirm_payment'")
    book.spoil("payment", f"DELETE FROM answers WHERE request_id = '{PAY_C}:confirm_payment'")
    assert (await audit(book.sources, AT_ONCE)).holds
