"""`python -m benchmarks`: measure Tally against an empty method, and write the report."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import cyclopts
import uvloop

from benchmarks.measure import Timing
from benchmarks.report.files import RESULTS, publish, write_report
from benchmarks.report.origin import origin
from benchmarks.rows import selected
from benchmarks.run import Options, Results, run
from benchmarks.shop import ACCOUNTS, Size
from deploy.local.command_line import Flag, make_app, report, run_app
from deploy.local.errors import RunnerError
from deploy.local.plan import PROJECT
from deploy.local.stop_signals import STOP_SIGNALS, Stopped

FULL: Final = Timing(rounds=5, seconds=2.5, warm_up_s=1.0)
QUICK: Final = Timing(rounds=3, seconds=0.8, warm_up_s=0.4)
SOAK_MINUTES: Final = 10.0
BIG_ACCOUNTS: Final = 1_000_000
QUICK_PARTS: Final = "main"
DATA_DIR: Final = PROJECT / ".tally"
FOLDER: Final = "bench"
"""In the data directory; removed at the end of a run."""

app = make_app("benchmarks", "Measure Tally against an empty method.")


@app.default
def bench(
    *,
    quick: Flag = False,
    rows: str = "",
    rounds: Annotated[
        int | None, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=2))
    ] = None,
    seconds: float = 0.0,
    accounts: int = ACCOUNTS,
    soak_minutes: float = SOAK_MINUTES,
    big_accounts: int = BIG_ACCOUNTS,
    results: Path = RESULTS,
    data_dir: Path = DATA_DIR,
    publish_page: Annotated[Flag, cyclopts.Parameter(name="--publish")] = False,
) -> int:
    """Exit 0 only if the books balance. A target that is missed is a line of the report.

    Parameters
    ----------
    quick
        Short periods, each row at the number of callers of its target only, and nothing that
        takes minutes (the parts locks, replicas, big and soak).
    rows
        Keys of rows (benchmarks/rows.py) or parts (main, locks, replicas, big, soak), separated by
        commas.
    rounds
        Rounds of each row.
    seconds
        Length of one period.
    accounts
        Accounts of the rows that spread over many.
    soak_minutes
        Length of the part soak.
    big_accounts
        Accounts of the large ledger, with ten entries each.
    results
        Where the report is written.
    data_dir
        A directory on a disk like production's: the data of a run are in its folder bench.
    publish
        Also put the results into docs/guides/performance.md.
    """
    names = rows or (QUICK_PARTS if quick else "")
    try:
        chosen = selected(names)
    except ValueError as error:
        raise RunnerError(str(error)) from None
    default = QUICK if quick else FULL
    soaks = not names or "soak" in names.split(",")
    options = Options(
        chosen,
        Timing(rounds or default.rounds, seconds or default.seconds, default.warm_up_s),
        Size(accounts=accounts),
        all_callers=not quick,
        soak_minutes=soak_minutes if soaks else 0.0,
        big_accounts=big_accounts,
        folder=data_dir.absolute() / FOLDER,
        report=report,
    )
    began = time.monotonic()
    done = _run(options)
    where = origin(options.timing, took_s=time.monotonic() - began)
    write_report(done, where, results)
    if publish_page:
        publish(done, where)
    report(f"{time.monotonic() - began:.0f} s; the report is in {results}")
    return _exit_code(done)


def _run(options: Options) -> Results:
    """The results; raises Stopped after a stop signal."""

    async def stoppable() -> Results:
        task = asyncio.current_task()
        assert task is not None
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await run(options)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(stoppable())
    except asyncio.CancelledError:
        raise Stopped from None


def _exit_code(results: Results) -> int:
    wrong = [part for part, audit in results.audits.items() if not audit.holds]
    for part in wrong:
        lines = "\n".join(results.audits[part].lines)
        sys.stderr.write(f"the books of {part} do not balance:\n{lines}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_app(app)
