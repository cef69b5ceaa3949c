"""`python -m tests.faults`: list the failpoints, or run the crash matrix or a part of it."""

from __future__ import annotations

import asyncio
import sys

from deploy.local.command_line import make_app, report, run_app
from tests.faults import table
from tests.faults.matrix import Matrix
from tests.faults.outages import DEPENDENCIES, LENGTHS
from tests.faults.outages import run as run_outages
from tests.faults.places import NAMES, cells

app = make_app("tests.faults", "Let the services fail at every failpoint.")


@app.command(name="list")
def list_names() -> None:
    """Print every failpoint's name."""
    sys.stdout.writelines(f"{name}\n" for name in sorted(NAMES))


@app.command
def crash(*, only: str = "", every: int = 1) -> int:
    """Run the crash matrix; exit 0 if every cell fired and all books hold.

    A whole run writes its table into docs/guides/failures.md.

    Parameters
    ----------
    only
        Only cells whose text contains this, such as "call.DeductBalance" or "recovery".
    every
        Only every n-th cell.
    """
    chosen = [cell for cell in cells() if only in str(cell)][::every]
    results = asyncio.run(Matrix(report).run(chosen))
    if not only and every == 1:
        table.write("crash matrix", table.matrix(results))
    report(
        f"{len(results.held)} held, {len(results.broken)} broken, "
        f"{len(results.never_fired)} never fired, {results.orders} orders, "
        f"{results.restarts} restarts, {results.seconds:.0f} s"
    )
    for cell in sorted(map(str, results.never_fired)):
        report(f"never fired: {cell}")
    for name in sorted(results.unlisted):
        report(f"in no list: {name}")
    for broken in results.broken:
        report(f"broken: {broken}")
    return 0 if results.complete else 1


@app.command
def outages(*, only: str = "", lengths: str = "") -> int:
    """Take each dependency away; exit 0 if all sagas end in time and all books hold.

    A whole run writes its table into docs/guides/failures.md.

    Parameters
    ----------
    only
        Only dependencies whose name contains this.
    lengths
        Only this length: "1 s", "30 s" or "15 min".
    """
    chosen = [one for one in DEPENDENCIES if only in one.name]
    long = [one for one in LENGTHS if lengths in {"", one.name}]
    outcomes = asyncio.run(run_outages(report, long, chosen))
    if not only and not lengths:
        table.write("outages", table.outages(outcomes))
    return 0 if all(outcome.held for outcome in outcomes) else 1


if __name__ == "__main__":
    run_app(app)
