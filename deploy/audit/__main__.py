"""`python -m deploy.audit`: exit 0 if the books of a stack balance, 1 if not, 2 if unreadable."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from deploy.audit.audit import OVERDUE_S, SETTLE_S, Limits, audit
from deploy.audit.report import as_json, as_text
from deploy.audit.sources import CannotAudit, Sources, sources_of_stack, urls_in
from deploy.local.command_line import Flag, make_app, run_app
from deploy.local.plan import DEFAULT_DATA_DIR
from deploy.local.stop_signals import run_stoppable

HOLDS, BREACH, UNREADABLE = 0, 1, 2

app = make_app("deploy.audit", "Check the invariants of a stack, running or stopped.")


@app.default
def check(
    *,
    data_dir: Path | None = None,
    gateway_record: Path | None = None,
    settle_s: float = SETTLE_S,
    overdue_s: float = OVERDUE_S,
    json: Flag = False,
) -> int:
    """Exit 0 only if every invariant holds, 1 if one does not, 2 if the books cannot be read.

    Without a data directory, the databases that TALLY_<SERVICE>_AUDIT_DATABASE_URL name are
    audited, and without those the default data directory.

    Parameters
    ----------
    data_dir
        The data directory of a stack, running or stopped.
    gateway_record
        The gateway simulator's record; by default the one in the data directory.
    settle_s
        For how many seconds the audit is repeated while a difference is unexplained.
    overdue_s
        For how many seconds an order, payment or saga may be due before nothing moves it.
    json
        Write the report as JSON.
    """
    limits = Limits(settle_s, overdue_s)
    with contextlib.ExitStack() as exits:
        urls = {} if data_dir else urls_in(os.environ)
        if not urls:
            directory = (data_dir or DEFAULT_DATA_DIR).absolute()
            sources = exits.enter_context(sources_of_stack(directory, gateway_record))
        elif gateway_record is None:
            raise CannotAudit("--gateway-record is needed to audit databases by their addresses")
        else:
            sources = Sources(urls, gateway_record)
        report = run_stoppable(audit(sources, limits))
    sys.stdout.write(as_json(report) if json else as_text(report))
    return HOLDS if report.holds else BREACH


if __name__ == "__main__":
    run_app(app, failure_code=UNREADABLE)
