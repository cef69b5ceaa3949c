"""A run: its parts one after the other, each audited at its end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.figures import Measurement
from benchmarks.measure import Place, Timing, measure
from benchmarks.parts import big, locks, main, replicas
from benchmarks.parts.soak import Memory, soak
from benchmarks.rows import Part, Row
from benchmarks.shop import Shop, Size
from benchmarks.stacks import Audit, audit, running_stack
from deploy.local.data_dir import locked


@dataclass(frozen=True, slots=True)
class Options:
    """What is run, and for how long."""

    rows: Sequence[Row]
    timing: Timing
    size: Size
    all_callers: bool
    """Each row at all of its numbers of callers, or only at that of its target."""
    soak_minutes: float
    big_accounts: int
    folder: Path
    """The stacks' data; removed at the end."""
    report: Callable[[str], None]


@dataclass(slots=True)
class Results:
    """All that the report shows."""

    measurements: list[Measurement] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    audits: dict[str, Audit] = field(default_factory=dict)
    """By part."""


async def run(options: Options) -> Results:
    """Run the parts. Call it in the main thread. Raises DirectoryInUse."""
    results = Results()
    with locked(options.folder):
        try:
            if _rows(options, "main") or options.soak_minutes:
                await _main(options, results)
            if _rows(options, "locks"):
                await _locks(options, results)
            if _rows(options, "replicas"):
                await _replicas(options, results)
            if _rows(options, "big"):
                await _big(options, results)
        finally:
            shutil.rmtree(options.folder, ignore_errors=True)
    return results


def _rows(options: Options, part: Part) -> list[Row]:
    return [row for row in options.rows if row.part == part]


def _names(row: Row) -> set[str]:
    return {row.subject, row.yardstick}


async def _main(options: Options, results: Results) -> None:
    rows = _rows(options, "main")
    compared = {name for row in rows for name in _names(row)} & main.COMPARISONS
    shop = Shop(options.size)
    options.report("starting one replica of each service, and the empty method")
    with running_stack(options.folder / "main") as stack:
        async with main.place(stack, shop) as place:
            own = [row for row in rows if not compared & _names(row)]
            await _measure(own, place, options, results)
            if options.soak_minutes:
                options.report(f"each kind of load in turn for {options.soak_minutes:g} minutes")
                results.memory = await soak(
                    place, minutes=options.soak_minutes, period_s=options.timing.seconds
                )
            async with main.comparisons(stack, shop, compared) as others:
                both = replace(place, subjects={**place.subjects, **others})
                compared_rows = [row for row in rows if compared & _names(row)]
                await _measure(compared_rows, both, options, results)
        options.report("auditing")
        results.audits["main"] = await audit(stack)


async def _locks(options: Options, results: Results) -> None:
    options.report("starting a stack for its Valkey")
    with running_stack(options.folder / "locks") as stack:
        await _measure(_rows(options, "locks"), locks.place(stack), options, results)
        results.audits["locks"] = await audit(stack)


async def _replicas(options: Options, results: Results) -> None:
    options.report(f"starting {replicas.REPLICAS} replicas of each service")
    with running_stack(options.folder / "replicas", replicas=replicas.REPLICAS) as stack:
        place = await replicas.place(stack)
        await _measure(_rows(options, "replicas"), place, options, results)
        results.audits["replicas"] = await audit(stack)


async def _big(options: Options, results: Results) -> None:
    accounts = options.big_accounts
    entries = accounts * big.ENTRIES_EACH
    options.report(f"filling a ledger with {entries:,} entries of {accounts:,} accounts")
    with ExitStack() as exits:
        small = exits.enter_context(running_stack(options.folder / "small"))
        large = exits.enter_context(running_stack(options.folder / "large"))
        place = await big.place(small, large, accounts=accounts)
        await _measure(_rows(options, "big"), place, options, results)
        results.audits["large ledger"] = await audit(large)


async def _measure(rows: Sequence[Row], place: Place, options: Options, results: Results) -> None:
    for row in rows:
        for callers in row.callers if options.all_callers else (row.at,):
            measured = await measure(row, callers, place, options.timing)
            results.measurements.append(measured)
            options.report(
                f"{row.key:<14} {callers:>3} callers: {measured.ratio:.3f}"
                f"  {measured.verdict or measured.uncounted}"
            )
