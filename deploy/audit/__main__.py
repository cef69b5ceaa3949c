"""`python -m deploy.audit`: whether the books of a stack balance; exit 0, 1 (no), 2 (not seen)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import cyclopts

from deploy.audit.audit import OVERDUE_S, SETTLE_S, Limits, audit
from deploy.audit.look import Line, Report
from deploy.audit.sources import CannotLook, Sources, named_in, of_stack
from deploy.local.plan import DEFAULT_DATA_DIR

HOLDS, BREACH, NOT_SEEN = 0, 1, 2
NAMED_MAX: Final = 10
"""As many differences of one invariant are named."""

app = cyclopts.App(
    name="python -m deploy.audit",
    help="Prove the invariants of a stack, running or stopped.",
    help_formatter="plain",
    help_format="plaintext",
    version_flags=(),
    print_error=False,
    exit_on_error=False,
)


@app.default
def check(
    *,
    data_dir: Path | None = None,
    gateway_record: Path | None = None,
    settle_s: float = SETTLE_S,
    overdue_s: float = OVERDUE_S,
    as_json: Annotated[bool, cyclopts.Parameter(name="--json", negative="")] = False,
) -> int:
    """Exit 0 only if every invariant holds, 1 if one does not, 2 if the books cannot be seen.

    Without a data directory, the databases that TALLY_<SERVICE>_AUDIT_DATABASE_URL name are
    audited, and without those the default data directory.

    Parameters
    ----------
    data_dir
        The data directory of a stack, running or stopped.
    gateway_record
        The gateway simulator's record; the data directory's own if not given.
    settle_s
        For how many seconds a difference that nothing explains is looked at again.
    overdue_s
        After how many seconds an order, payment or saga must have come to its end.
    as_json
        Write the report as JSON.
    """
    report = asyncio.run(_audit(data_dir, gateway_record, Limits(settle_s, overdue_s)))
    sys.stdout.write(as_text(report) if not as_json else as_document(report))
    return HOLDS if report.holds else BREACH


async def _audit(data_dir: Path | None, gateway_record: Path | None, limits: Limits) -> Report:
    named = {} if data_dir else named_in(os.environ)
    async with contextlib.AsyncExitStack() as exits:
        if not named:
            directory = (data_dir or DEFAULT_DATA_DIR).absolute()
            sources = await exits.enter_async_context(of_stack(directory, gateway_record))
        elif gateway_record is None:
            raise CannotLook("--gateway-record is needed to audit databases by their addresses")
        else:
            sources = Sources(named, gateway_record)
        return await audit(sources, limits)


def as_text(report: Report) -> str:
    """The report for a reader: a line for each invariant, with what differs below it."""
    told = []
    for line in report.lines:
        told.append(_headline(line))
        told += [f"      - {difference}" for difference in line.differences[:NAMED_MAX]]
        if (left := max(len(line.differences) - NAMED_MAX, 0) + line.more) > 0:
            told.append(f"      and {left:,} more")
    if report.in_flight:
        told.append(f"in flight, explained by what is under way: {len(report.in_flight):,}")
        told += [f"      - {difference}" for difference in report.in_flight[:NAMED_MAX]]
        if (left := len(report.in_flight) - NAMED_MAX) > 0:
            told.append(f"      and {left:,} more")
    broken = [line.invariant for line in report.lines if not line.holds]
    told.append(
        f"The books do NOT balance: {', '.join(broken)}." if broken else "The books balance."
    )
    return "\n".join(told) + "\n"


def _headline(line: Line) -> str:
    if line.holds:
        return f"{line.invariant}  ok      {line.figure}: {line.promise}"
    count = len(line.differences) + line.more
    return f"{line.invariant}  BREACH  {line.figure}: {count:,} differ, but should: {line.promise}"


def as_document(report: Report) -> str:
    """The report for a program, every difference that was kept included."""
    lines = [dataclasses.asdict(line) | {"holds": line.holds} for line in report.lines]
    document = {
        "holds": report.holds,
        "looks": report.looks,
        "invariants": lines,
        "in_flight": list(report.in_flight),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Run and exit."""
    try:
        sys.exit(app(sys.argv[1:]))
    except (CannotLook, cyclopts.CycloptsError) as error:
        sys.stderr.write(f"error: {str(error).strip()}\n")
        sys.exit(NOT_SEEN)


if __name__ == "__main__":
    main()
