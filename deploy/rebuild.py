"""`python -m deploy.rebuild`: every balance, rebuilt from the ledger and compared. Changes nothing.

It needs the balance database alone: after a restore, or if a stored balance is in doubt. The audit
compares the same rows among all others, and needs the books of all services.

The database adds up the entries in one snapshot, and only the accounts that differ are read, one at
a time: the memory needed here does not grow with the number of accounts.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

import sqlalchemy as sa

from deploy.audit.arguments import make_parser, run_command
from deploy.audit.databases import open_databases, places_in_words, places_of
from deploy.audit.snapshots import connect, database_errors
from deploy.local.stop_signals import run_stoppable

EQUAL, DIFFERENT = 0, 1

_COUNTS: Final = sa.text(
    "SELECT (SELECT count(*) FROM accounts) AS accounts,"
    " (SELECT count(*) FROM ledger_entries) AS entries"
)
# An account that was opened and not charged has no entry and version 0. Its sequence has no gap, so
# its version is the number of its entries.
_DIFFERENCES: Final = sa.text("""
SELECT user_id, currency_code, stored.available_minor, stored.version, stored.update_time,
       rebuilt.available_minor AS rebuilt_minor, rebuilt.version AS rebuilt_version,
       rebuilt.update_time AS rebuilt_time
  FROM accounts AS stored
  FULL JOIN (SELECT user_id, currency_code, sum(amount_minor) AS available_minor,
                    count(*) AS version, max(create_time) AS update_time
               FROM ledger_entries GROUP BY user_id, currency_code) AS rebuilt
 USING (user_id, currency_code)
 WHERE (stored.available_minor, stored.version)
       IS DISTINCT FROM (coalesce(rebuilt.available_minor, 0), coalesce(rebuilt.version, 0))
    OR stored.update_time <> rebuilt.update_time
 ORDER BY user_id, currency_code
""")

_USAGE = """\
Rebuild every balance from the ledger, and compare: each account that differs is one line. Exit 0 if
every stored balance is that of the ledger, 1 if one is not, 2 if the database cannot be read.
Without --data-dir, the database that TALLY_BALANCE_AUDIT_DATABASE_URL names is read, and without
that the default data directory; both at once are refused.
"""


def compare(options: argparse.Namespace) -> int:
    """Rebuild and compare; the exit code. Raises RunnerError."""
    with open_databases(options.data_dir, ("balance",)) as databases:
        differ = run_stoppable(rebuild(databases.urls["balance"]))
    return DIFFERENT if differ else EQUAL


async def rebuild(url: str) -> int:
    """Print each account that differs, and how many do; returns that. Raises CannotAudit."""
    differ = 0
    async with connect("balance", url) as connection:
        with database_errors("balance"):
            counts = (await connection.execute(_COUNTS)).one()
            async with connection.stream(_DIFFERENCES) as rows:
                async for row in rows:
                    differ += 1
                    sys.stdout.write(f"{_difference(row)}\n")
    total = f"{counts.accounts:,} accounts rebuilt from {counts.entries:,} entries"
    place = places_in_words(places_of({"balance": url}))
    sys.stdout.write(f"{total} of {place}: {differ:,} differ.\n")
    return differ


def _difference(row: sa.Row[Any]) -> str:
    stored = _state(row.available_minor, row.version, row.update_time)
    # A sum of bigints is a Decimal, which may be formatted as 1E+5.
    minor = None if row.rebuilt_minor is None else int(row.rebuilt_minor)
    rebuilt = _state(minor, row.rebuilt_version, row.rebuilt_time)
    return f"{row.user_id} {row.currency_code}: stored {stored}; by its entries {rebuilt}"


def _state(minor: int | None, version: int | None, time: object) -> str:
    return "nothing" if version is None else f"{minor} at version {version}, changed {time}"


if __name__ == "__main__":
    run_command(make_parser("deploy.rebuild", _USAGE), compare, sys.argv[1:])
