"""`python -m deploy.audit`: one audit of a stack, running or stopped, and its report.

It needs no package beyond those of the services, so that it also runs in their image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from deploy.audit.arguments import make_parser, run_command
from deploy.audit.audit import OVERDUE_S, SETTLE_S, Limits, audit
from deploy.audit.audit_pass import Note
from deploy.audit.databases import Databases, open_databases
from deploy.audit.report import as_json
from deploy.audit.runs import gateway_of_settings
from deploy.audit.sources import SERVICES, Sources
from deploy.audit.table import as_text
from deploy.local.stop_signals import run_stoppable

HOLDS, BREACH = 0, 1
GATEWAY_DAYS = 2

_USAGE = """\
Check the invariants of a stack, running or stopped. Exit 0 only if every one holds, 1 if one does
not, 2 if the books cannot be read. Without --data-dir, the databases that
TALLY_<SERVICE>_AUDIT_DATABASE_URL name (or files in TALLY_SECRETS_DIR) are audited, and without
those the default data directory; both at once are refused. `python -m deploy.audit serve` audits
again and again (docs/guides/audit.md).
"""


def main(arguments: Sequence[str]) -> NoReturn:
    """Run the command and exit."""
    run_command(_parser(), check, arguments)


def check(options: argparse.Namespace) -> int:
    """Audit once, print the report, return the exit code. Raises CannotAudit and RunnerError."""
    limits = Limits(options.settle_s, options.overdue_s)
    since = options.since and dict.fromkeys(SERVICES, options.since)
    with open_databases(options.data_dir) as databases:
        report = run_stoppable(audit(_sources(databases, options), limits, since))
    text = as_json(report) if options.json else as_text(report, details=options.verbose)
    sys.stdout.write(text)
    if options.no_foreign and (foreign := report.noted(Note.FOREIGN)):
        sys.stderr.write(f"error: {foreign} foreign, which --no-foreign refuses\n")
        return BREACH
    return HOLDS if report.holds else BREACH


def _sources(databases: Databases, options: argparse.Namespace) -> Sources:
    if options.gateway_record:
        return Sources(databases.urls, options.gateway_record)
    if databases.data_dir is not None:
        # Not in the image, which has no stack.
        from deploy.local.plan import GATEWAY_RECORD  # noqa: PLC0415

        return Sources(databases.urls, databases.data_dir / GATEWAY_RECORD)
    return Sources(databases.urls, gateway_api=gateway_of_settings(options.gateway_days))


def _time(text: str) -> datetime:
    """ISO 8601; without an offset it is UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("deploy.audit", _USAGE)
    add = parser.add_argument
    add("-v", "--verbose", action="store_true", help="list every figure, difference and note")
    add("--json", action="store_true", help="write the report as JSON")
    add("--gateway-record", type=Path, help="the simulator's record; default: the data directory's")
    add(
        "--gateway-days",
        type=int,
        default=GATEWAY_DAYS,
        help="look up payments at the gateway (TALLY_PAYMENT_GATEWAY_URL) that changed in these"
        " days; 0: do not ask it (default: %(default)s)",
    )
    add(
        "--since",
        type=_time,
        metavar="TIME",
        help="check users, products and campaigns touched since then only, each whole; take a time"
        " before the snapshot of a full audit by as much as the longest transaction",
    )
    add(
        "--no-foreign",
        action="store_true",
        help="exit 1 for foreign effects too: where identity is off and only Tally's own sagas send"
        " such request_ids, they are what a lost saga left",
    )
    add(
        "--settle-s",
        type=float,
        default=SETTLE_S,
        help="seconds in which the audit is repeated while a difference is unexplained"
        " (default: %(default)s)",
    )
    add(
        "--overdue-s",
        type=float,
        default=OVERDUE_S,
        help="seconds for which an order, payment or saga may be due before nothing moves it"
        " (default: %(default)s)",
    )
    return parser
