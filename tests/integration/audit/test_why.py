"""What `make why` says about each kind of id, on the books of the audit's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.audit.arguments import UNREADABLE
from deploy.local.plan import SERVICES
from deploy.local.secret_files import write_json
from deploy.local.state import STATE_FILE
from deploy.why import report
from deploy.why.__main__ import FOUND, NEWEST, UNKNOWN, answer_of
from deploy.why.report import COLUMNS, Answer
from deploy.why.subject import Unknown
from tests.integration.audit import books as rows
from tests.integration.audit.conftest import Books
from tests.support.programs import run_program

STUCK = f"""
UPDATE sagas SET state = 'NEEDS_ATTENTION', attempts = 7, owner = NULL,
       next_attempt_time = now() + interval '1 hour', lease_until = now() + interval '1 hour',
       last_error = 'UNAVAILABLE PAYMENT_OUTCOME_UNKNOWN',
       steps = jsonb_set(steps, '{{2}}', '{{"name": "confirm_payment", "participant": "payment",
           "state": "UNKNOWN", "attempts": 7, "failures": 7,
           "last_error": "UNAVAILABLE PAYMENT_OUTCOME_UNKNOWN",
           "next_attempt_time": "2100-01-01T00:00:00+00:00"}}')
 WHERE saga_id = '{rows.PAY_D}'
"""


async def ask(books: Books, id_: str, *, user: str = "", newest: int = NEWEST) -> Answer | Unknown:
    return await answer_of(books.urls, id_, user, newest)


async def answered(books: Books, id_: str, **options: Any) -> Answer:
    answer = await ask(books, id_, **options)
    assert isinstance(answer, Answer)
    assert all(len(line) <= COLUMNS for line in report.as_text(answer).splitlines())
    return answer


def told(answer: Answer) -> list[tuple[str, str, str, str]]:
    return [(event.service, event.what, event.amount, event.change) for event in answer.events]


@pytest.mark.parametrize(
    ("id_", "kind", "orders"),
    [
        (rows.A, "order", {rows.A}),
        (rows.PAY_B, "saga", {rows.B}),
        (f"{rows.PAY_B}:confirm_payment", "step", {rows.B}),
        (f"{rows.CANCEL_B}:refund_deduction:undo", "step", {rows.B}),
        (rows.PAID_A, "payment", {rows.A}),
        (f"key-{rows.PAID_A[-2:]}", "payment_key", {rows.A}),
        (rows.COUPON_A, "coupon", {rows.A}),
        ("ann", "user", {rows.A, rows.C, rows.E, rows.F}),
        (f"pay-{rows.PAY_A}", "request_id", {rows.A}),
        (f"create-{rows.F}", "request_id", {rows.F}),
        # Payments and deductions without an order.
        (rows.DIRECT, "payment", set()),
        ("direct-1", "request_id", set()),
    ],
)
async def test_an_id_is_found_with_all_that_belongs_to_it(
    books: Books, id_: str, kind: str, orders: set[str]
) -> None:
    answer = await answered(books, id_)
    assert (answer.subject.kind, answer.subject.id) == (kind, id_)
    assert answer.events
    found = {
        event.ids["order_id"]
        for event in answer.events
        if event.service == "order" and "order_id" in event.ids
    }
    # Other tests' books give the user some more.
    assert found >= orders if kind == "user" else found == orders


async def test_an_order_is_told_over_all_services_in_order_of_time(books: Books) -> None:
    answer = await answered(books, rows.B)
    assert {service for service, *_ in told(answer)} == {*SERVICES}
    times = [event.time for event in answer.events]
    assert times == sorted(times)
    ledger = [each[2:] for each in told(answer) if each[0] == "balance"]
    assert ledger == [("-1,000 KRW", "5,000 → 4,000"), ("1,000 KRW", "3,900 → 4,900")]
    assert ("paid", "nothing") not in answer.now
    assert ("held", "nothing") in answer.now
    assert answer.next == []


async def test_a_paid_order_says_what_paid_it(books: Books) -> None:
    answer = await answered(books, rows.A)
    paid = "3,000 KRW of the balance, 1,500 KRW by the gateway, a coupon of 500 KRW"
    assert ("paid", paid) in answer.now


async def test_a_request_id_of_several_services_shows_each_use(books: Books) -> None:
    """With its user it is found by indexes, and so is one whose answers are gone."""
    for options in ({}, {"user": "bob"}):
        answer = await answered(books, "direct-1", **options)
        amounts = {event.amount for event in answer.events}
        assert amounts == {"-100 KRW", "900 KRW"}
        assert len(answer.subject.uses) == 2
    books.change("balance", "DELETE FROM answers")
    assert "-100 KRW" in {event.amount for event in (await answered(books, "direct-1")).events}


async def test_what_is_stuck_says_what_it_waits_for_and_what_to_do(books: Books) -> None:
    books.change("order", STUCK)
    answer = await answered(books, rows.D)
    text = " ".join(report.as_text(answer).split())
    assert f"{rows.PAY_D} PAY_ORDER NEEDS_ATTENTION" in text
    assert "confirm_payment UNKNOWN: UNAVAILABLE PAYMENT_OUTCOME_UNKNOWN" in text
    assert "waits for the gateway" in answer.next[0]
    assert "RetrySaga" in answer.next[1]
    assert "held 250 KRW of the balance" in text


async def test_money_that_nothing_gives_back_is_pointed_out(books: Books) -> None:
    books.change("order", f"UPDATE orders SET state = 'EXPIRED' WHERE order_id = '{rows.D}'")
    books.change(
        "order",
        f"UPDATE sagas SET state = 'COMPENSATED', failure = '{{}}' WHERE order_id = '{rows.D}'",
    )
    [advice] = (await answered(books, rows.D)).next
    assert "holds 250 KRW of the balance, and no saga gives that back: run `make audit`" in advice


async def test_a_user_with_much_is_shown_in_part_which_is_said(books: Books) -> None:
    answer = await answered(books, "ann", newest=2)
    assert len(answer.events) == 2
    assert {"orders", "ledger entries"} <= {*answer.cut}
    assert "The newest 2 events" in report.as_text(answer)
    whole = await answered(books, "ann", newest=500)
    assert (whole.left_out, whole.cut) == (0, [])


@pytest.mark.parametrize("id_", ["nobody", rows.uid(999), "0af7651916cd43dd8448eb211c80319c", "'"])
async def test_an_unknown_id_says_where_it_was_looked_for(books: Books, id_: str) -> None:
    unknown = await ask(books, id_)
    assert isinstance(unknown, Unknown)
    text = report.unknown_as_text(unknown)
    assert "request_ids in order, balance, coupon, payment" in text
    assert ("form of a trace id" in text) is (len(id_) == 32)


@pytest.mark.parametrize(("id_", "user"), [("typo", "ann"), ("direct-1", "ann"), ("typo", "no")])
async def test_a_request_that_the_user_has_not_is_unknown(
    books: Books, id_: str, user: str
) -> None:
    unknown = await ask(books, id_, user=user)
    assert isinstance(unknown, Unknown)
    text = report.unknown_as_text(unknown)
    assert f"request_ids of user {user} in order, balance, coupon, payment" in text


async def test_a_database_that_is_away_is_named_and_the_rest_is_shown(books: Books) -> None:
    for away in SERVICES:
        named = {
            f"TALLY_{name.upper()}_AUDIT_DATABASE_URL": url for name, url in books.urls.items()
        } | {f"TALLY_{away.upper()}_AUDIT_DATABASE_URL": "postgresql://a:b@127.0.0.1:1/none"}
        code, output, error = await run("ann", **named)
        assert (code, error) == (UNREADABLE, "")
        assert f"unread  the {away} database: it does not answer" in output
        assert "nothing is stuck in what could be read" in output
        shown = {service for service in SERVICES if f"  {service} " in output.split("from →")[1]}
        assert shown == {*SERVICES} - {away}
    code, output, _ = await run("nobody", **named)
    assert code == UNREADABLE
    assert output.startswith("nobody was not found in what could be read.")
    assert "NOT read: the payment database" in output


async def run(*arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    return await run_program("deploy.why", *arguments, **environment)


async def test_the_command_reads_a_data_directory_or_addresses(
    books: Books, tmp_path: Path
) -> None:
    write_json(tmp_path / STATE_FILE, {"audit_urls": books.urls, "outside": sorted(SERVICES)})
    code, output, error = await run(rows.A, "--data-dir", tmp_path)
    assert (code, error) == (FOUND, "")
    assert output.startswith(f"order {rows.A}\n")
    named = {f"TALLY_{name.upper()}_AUDIT_DATABASE_URL": url for name, url in books.urls.items()}
    code, output, _ = await run(rows.A, "--json", **named)
    document = json.loads(output)
    assert (code, document["kind"], document["id"]) == (FOUND, "order", rows.A)
    assert {*document["databases"]} == {*SERVICES}
    assert document["events"][0]["ids"]["order_id"] == rows.A
    assert (await run("nobody", **named))[0] == UNKNOWN


async def test_a_trace_shows_the_orders_of_its_log_lines(books: Books, tmp_path: Path) -> None:
    write_json(tmp_path / STATE_FILE, {"audit_urls": books.urls, "outside": sorted(SERVICES)})
    trace, other = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c"
    lines = [
        {"trace_id": trace, "request_id": "direct-1"},
        {"trace_id": trace, "order_id": rows.A},
        {"trace_id": trace, "order_id": rows.A},
        {"trace_id": other, "order_id": rows.B, "reason": f"after {trace}"},
    ]
    (tmp_path / "logs").mkdir()
    log = "not JSON, " + trace + "\n" + "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "logs" / "order-1.log").write_text(log)
    code, output, error = await run(trace, "--data-dir", tmp_path)
    assert (code, error) == (FOUND, "")
    assert output.startswith(f"trace {trace}\n  order   {rows.A} of user ann\n")
    assert rows.B not in output
    code, output, _ = await run("2" * 32, "--data-dir", tmp_path)
    assert (code, "search the logs" in output) == (UNKNOWN, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "ID"),
        (("x" * 201,), "ID: must have 1 to 200 characters"),
        (("ann", "--newest", "0"), "--newest: must be 1 or more"),
        (("ann", "--data-dir", "/does/not/exist"), "no stack has been started"),
    ],
)
async def test_wrong_usage_exits_2_with_one_line(arguments: tuple[str, ...], says: str) -> None:
    code, output, error = await run(*arguments)
    assert (code, output) == (UNREADABLE, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert says in error
