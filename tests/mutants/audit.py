"""Planted bugs of the audit: breaches that it would not see, or excuse."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_AUDIT: Final = "tests/integration/audit/test_audit.py::"
_BREACH: Final = "tests/integration/audit/test_breaches.py::test_audit_reports_breach"
_EXPLAINED: Final = (
    "tests/integration/audit/test_explained.py::test_what_is_not_explained_is_a_breach"
)
_COMMAND: Final = "tests/integration/audit/test_command.py::"
_SERVE: Final = "tests/integration/audit/test_serve.py::"
_RECENT: Final = "tests/integration/audit/test_recent.py::"
_FOREIGN: Final = "tests/integration/audit/test_foreign.py::"
_MEMORY: Final = "tests/integration/audit/test_memory.py::test_memory_does_not_grow_with_the_books"
_REBUILD: Final = "tests/integration/audit/test_rebuild.py::"

AUDIT: Final = (
    Mutant(
        "stuck-saga-explains",
        "a saga that does not move explains what it has taken",
        file="deploy/audit/claims.py",
        old="""WHEN {moving("s.lease_until")} THEN 'OPEN' ELSE 'STUCK' END""",
        new="ELSE 'OPEN' END",
        tests=(f"{_BREACH}[order: a saga that does not move explains nothing]",),
    ),
    Mutant(
        "moving-saga-explains-any-amount",
        "a saga that moves explains what it has taken, whatever the amount",
        file="deploy/audit/sagas.py",
        old='        return f"{noun} with {differing}"\n',
        new="        return None\n",
        tests=(f"{_BREACH}[balance: an attempt under way deducted another amount]",),
    ),
    Mutant(
        "closed-saga-explains",
        "a saga that an earlier release closed explains what it left in force",
        file="deploy/audit/claims.py",
        old="THEN CASE s.plan_version WHEN 1 THEN 'UNACCOUNTED' ELSE 'NOTHING' END",
        new="THEN CASE s.plan_version WHEN 1 THEN 'OPEN' ELSE 'NOTHING' END",
        tests=(f"{_EXPLAINED}[an earlier release closed an attempt and left a deduction]",),
    ),
    Mutant(
        "age-by-the-clock",
        "the age of work is taken against the clock: a stopped stack gets another verdict",
        file="deploy/audit/checks.py",
        old='ran = f"h.runs * tstzmultirange(tstzrange({due_time}, NULL))"',
        new='ran = f"tstzmultirange(tstzrange(least({due_time}, now()), now()))"',
        tests=(f"{_AUDIT}test_what_moved_is_not_overdue_when_the_stack_is_stopped",),
    ),
    Mutant(
        "effect-without-a-saga-accepted",
        "an effect that no saga claims is accepted",
        file="deploy/audit/sagas.py",
        old='and no such saga" if live and not foreign else None\n',
        new='and no such saga" if live and not live else None\n',
        tests=(f"{_BREACH}[balance: a deduction belongs to no saga]",),
    ),
    Mutant(
        "every-effect-may-be-foreign",
        "an effect of the order service whose saga is gone is taken for another's",
        file="deploy/audit/sagas.py",
        old="    return bool(effect.origin == Origin.UNVERIFIED)\n",
        new="    return bool(effect.origin != Origin.DIRECT)\n",
        tests=(f"{_FOREIGN}test_what_only_the_order_service_can_have_done_is_a_breach",),
    ),
    Mutant(
        "standing-amount-not-compared",
        "any amount may stand once a person has let one stand",
        file="deploy/audit/sagas.py",
        old="    if not effect.left_minor <= claim.standing_minor"
        " <= effect.left_minor + effect.outside_minor:\n",
        new="    if not effect.left_minor <= effect.left_minor + effect.outside_minor:\n",
        tests=(f"{_EXPLAINED}[a deduction stands with another amount]",),
    ),
    Mutant(
        "charge-of-a-declined-payment-accepted",
        "what the gateway has captured is compared for confirmed payments only",
        file="deploy/audit/gateway.py",
        old="if captured != (amount if charged else 0) or",
        new="if charged and captured != amount or",
        tests=(f"{_BREACH}[gateway: the gateway has charged a declined card]",),
    ),
    Mutant(
        "stock-total-not-compared",
        "the stock of a product is not compared with the journal of its stockings",
        file="deploy/audit/order.py",
        old="    OR last AND stocked_after <> p.stocked\n",
        new="",
        tests=(f"{_BREACH}[order: the total stock is raised]",),
    ),
    Mutant(
        "breach-with-exit-0",
        "the audit reports a breach and exits with 0",
        file="deploy/audit/command.py",
        old="return HOLDS if report.holds else BREACH",
        new="return HOLDS if report.lines else BREACH",
        tests=(f"{_COMMAND}test_breach_exits_1_as_text_and_as_json",),
    ),
    Mutant(
        "late-commit-missed",
        "what was touched is searched from the last full verdict on, without the margin for a"
        " transaction that was open then",
        file="deploy/audit/runs.py",
        old="return {service: time - longest for",
        new="return {service: time - 0 * longest for",
        tests=(f"{_SERVE}test_late_commit_is_found",),
    ),
    Mutant(
        "untouched-rows-of-a-touched-user-skipped",
        "of a user who was touched, only the rows that were touched are checked",
        file="deploy/audit/balance.py",
        old='"ledger_entries": "user_id = ANY ({ids})",',
        new='"ledger_entries": "create_time >= :since",',
        tests=(f"{_RECENT}test_old_row_of_what_was_touched_is_checked[balance]",),
    ),
    Mutant(
        "whole-book-in-memory",
        "the audit reads all rows of a book before it compares the first",
        file="deploy/audit/merge_join.py",
        old="        async for row in result:\n",
        new="        for row in [row async for row in result]:\n",
        tests=(f"{_MEMORY}[full]",),
    ),
    Mutant(
        "every-difference-in-memory",
        "the audit reads every difference, and not as many as it keeps",
        file="deploy/audit/checks.py",
        old=" ORDER BY key LIMIT {KEPT_MAX}",
        new=" ORDER BY key",
        tests=(f"{_MEMORY}[full]",),
    ),
    Mutant(
        "rebuilt-differently-with-exit-0",
        "a balance that is not that of the ledger is named, and the command exits with 0",
        file="deploy/rebuild.py",
        old="return DIFFERENT if differ else EQUAL",
        new="return EQUAL",
        tests=(f"{_REBUILD}test_exit_codes",),
    ),
)
