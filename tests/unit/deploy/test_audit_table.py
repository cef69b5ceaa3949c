"""The table of an audit: its width, its words, and what it lists."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from deploy.audit.audit_pass import AuditPass, Note
from deploy.audit.invariants import INVARIANTS
from deploy.audit.report import Report
from deploy.audit.table import as_text

COLUMNS = 98
"""The demo indents by two."""
ID = "01900000-0000-7000-8000-000000000011"


def found(differences: int = 0, notes: int = 0) -> AuditPass:
    one = AuditPass()
    for invariant in INVARIANTS:
        for number in range(3):
            one.add_figure(invariant, f"gateway KRW {10**15:,} captured - {number:,} refunded = 0")
        for number in range(differences):
            text = f"order {ID}: deduction of KRW {number:,}, and saga {ID} does not move"
            one.add_difference([invariant], "check", f"{number:05}", text)
    for note in Note:
        for number in range(notes):
            one.add_note(note, f"order {ID}: payment of KRW {number:,}, by saga {ID}")
    return one


@pytest.mark.parametrize("differences", [0, 1, 30])
@pytest.mark.parametrize("notes", [0, 30])
def test_no_line_is_too_long(differences: int, notes: int) -> None:
    one = found(differences, notes)
    one.leave_out("the gateway's side: " + "neither its record nor its API is known " * 5)
    text = as_text(Report.of(one, 1))
    assert max(map(len, text.splitlines())) <= COLUMNS


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_words_match_the_verdict(invariant: str) -> None:
    one = AuditPass()
    one.add_difference([invariant], "check", "row", "it differs")
    for line in Report.of(one, 1).lines:
        words = INVARIANTS[line.invariant]
        assert line.finding == (words.broken if line.invariant == invariant else words.holds)
    text = as_text(Report.of(one, 1))
    assert text.count("BREACH") == 1
    assert text.endswith(f"The books do NOT balance: {invariant}.\n")


def test_work_on_its_way_is_counted_and_is_no_breach() -> None:
    one = AuditPass()
    one.add_note(Note.UNDER_WAY, "a saga that moves")
    report = Report.of(one, 1)
    text = as_text(report)
    assert "1 under way\n" in text
    assert text.endswith("The books balance.\n")
    assert "a saga that moves" in as_text(report, details=True)


def test_details_list_every_difference_and_note() -> None:
    report = Report.of(found(differences=30, notes=30), 1)
    short, details = as_text(report), as_text(report, details=True)
    assert "and 20 more (-v lists them)" in short
    assert "and " not in {line.strip()[:4] for line in details.splitlines()}
    for number in (0, 29):
        assert f"deduction of KRW {number:,}, and saga {ID} does not move" in details


def test_gateway_that_is_left_out_is_not_said_to_agree() -> None:
    one = AuditPass(gateway_left_out=True)
    one.leave_out("the gateway's side")
    text = " ".join(as_text(Report.of(one, 1)).split())
    assert "the gateway's side was left out" in text
    assert "Not checked: the gateway's side." in text
    assert "agrees with the gateway" not in text


def test_part_of_the_books_is_named_by_its_time() -> None:
    since = {
        "order": datetime(2026, 3, 1, 3, tzinfo=UTC),
        "payment": datetime.max.replace(tzinfo=UTC),
    }
    report = replace(Report.of(AuditPass(), 1), since=since)
    assert as_text(report).startswith(
        "Users, products and campaigns touched since 2026-03-01 03:00:00 UTC, whole:\n"
    )
