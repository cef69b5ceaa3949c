"""`python -m deploy.rebuild`: each balance that is not that of the ledger is named."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from sqlalchemy.engine import make_url

from deploy.rebuild import rebuild
from tests.integration.audit.conftest import Books
from tests.support.programs import run_program

ACCOUNTS: Final = """
INSERT INTO accounts SELECT 'u' || lpad(n::text, 4, '0'), 'KRW', 100000, 2, '2026-03-01', 300000, 2
  FROM generate_series(0, 1999) AS n;
INSERT INTO ledger_entries
SELECT 'u' || lpad(n::text, 4, '0'), 'KRW', s, gen_random_uuid(),
       CASE s WHEN 1 THEN 'CHARGE' ELSE 'DEDUCT' END, CASE s WHEN 1 THEN 300000 ELSE -200000 END,
       CASE s WHEN 1 THEN 300000 ELSE 100000 END, 'r' || s, NULL, NULL, '2026-03-01'
  FROM generate_series(0, 1999) AS n, generate_series(1, 2) AS s;
INSERT INTO accounts VALUES ('opened', 'KRW', 0, 0, now());
"""
DAMAGE: Final = {
    "balance": "UPDATE accounts SET available_minor = 100001 WHERE user_id = '{user}'",
    "version": "UPDATE accounts SET version = 3 WHERE user_id = '{user}'",
    "time": "UPDATE accounts SET update_time = now() WHERE user_id = '{user}'",
    "account": "DELETE FROM accounts WHERE user_id = '{user}'",
    "entries": "DELETE FROM ledger_entries WHERE user_id = '{user}'",
    "first entry": "DELETE FROM ledger_entries WHERE user_id = '{user}' AND sequence = 1",
    "last entry": "DELETE FROM ledger_entries WHERE user_id = '{user}' AND sequence = 2",
}


async def run(url: str, *arguments: str | Path) -> tuple[int, str, str]:
    """The command's exit code, and what it writes."""
    named = {"TALLY_BALANCE_AUDIT_DATABASE_URL": url} if url else {}
    return await run_program("deploy.rebuild", *arguments, **named)


async def test_each_account_that_differs_is_named(
    books: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    damage = {f"u{7 * n:04}": script for n, script in enumerate(DAMAGE.values())}
    scripts = (script.format(user=user) for user, script in damage.items())
    books.change("balance", ACCOUNTS + ";".join(scripts))
    assert await rebuild(books.urls["balance"]) == len(damage)
    *lines, total = capsys.readouterr().out.splitlines()
    assert [line.partition(" KRW: stored ")[0] for line in lines] == list(damage)
    assert lines[0].partition(": ")[2] == (
        "stored 100001 at version 2, changed 2026-03-01 00:00:00+00:00;"
        " by its entries 100000 at version 2, changed 2026-03-01 00:00:00+00:00"
    )
    assert f" of {make_url(books.urls['balance']).database} at " in total
    assert total.endswith(f": {len(damage)} differ.")


async def test_every_difference_is_named_however_many(
    books: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    books.change("balance", f"{ACCOUNTS} DELETE FROM ledger_entries WHERE user_id LIKE 'u%'")
    assert await rebuild(books.urls["balance"]) == 2_000
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2_001
    assert lines[-2].startswith("u1999 KRW: ")
    assert lines[-2].endswith("; by its entries nothing")


async def test_exit_codes(books: Books, tmp_path: Path) -> None:
    code, output, error = await run(books.urls["balance"])
    assert (code, error, output.count("\n")) == (0, "", 1)
    books.change("balance", "UPDATE accounts SET version = version + 1 WHERE user_id = 'ann'")
    code, output, error = await run(books.urls["balance"])
    assert (code, error) == (1, "")
    assert output.startswith("ann ")
    code, output, error = await run("", "--data-dir", tmp_path)
    assert (code, output) == (2, "")
    assert f"no stack has been started in {tmp_path}" in error
