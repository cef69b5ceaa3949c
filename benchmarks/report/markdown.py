"""The report as Markdown: the targets first, then what each call costs, and whom."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.figures import Measurement, Period
from benchmarks.parts.soak import Memory
from benchmarks.processes import LOAD, OTHER
from benchmarks.report.origin import Origin
from benchmarks.rows import RSS_MAX_MB, SPREAD_MAX, Figure
from benchmarks.run import Results
from benchmarks.stacks import Audit


def as_markdown(results: Results, origin: Origin) -> str:
    """The whole report, without a title."""
    measured = results.measurements
    parts: list[Iterable[str]] = [(f"- {line}" for line in origin.lines)]
    if measured:
        parts += [_targets(measured), _rates(measured), _costs(measured)]
    if results.memory:
        parts.append(_memory(results.memory))
    parts.append(_audits(results.audits))
    return "\n".join(line for part in parts for line in (*part, ""))


def _targets(measured: Sequence[Measurement]) -> Iterator[str]:
    yield "### Targets"
    yield ""
    yield (
        "The ratio is the median of the rounds (lowest to highest). It counts only if the "
        f"yardstick's own spread, (highest - lowest) / median, is below {SPREAD_MAX:.0%}. By "
        "processor time it is what the busiest server of the yardstick uses per unit, divided by "
        "what the busiest one of the subject uses: a noisy machine changes that less, and it does "
        "not count."
    )
    yield ""
    head = (
        *("what", "callers", "target", "ratio", "the yardstick's spread", "verdict"),
        "by processor time",
    )
    rows = [
        (
            one.row.what,
            str(one.callers),
            str(one.row.target or ""),
            _rounds(one.ratios),
            f"{one.yardstick_spread:.0%}",
            one.verdict,
            _rounds(one.processor_ratios),
        )
        for one in measured
        if one.is_for_target
    ]
    yield from table(head, rows)


def _rounds(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.3g} ({min(ratios):.3g}-{max(ratios):.3g})"


def _rates(measured: Sequence[Measurement]) -> Iterator[str]:
    yield "### Rates and latencies"
    yield ""
    yield (
        "Medians of the rounds. p50 and p99 are of one step, which may be several calls. At one "
        "caller, and at a fixed rate, the client is grpc.aio's, otherwise the load generator's own."
    )
    yield ""
    head = ("what", "callers", "per second", "p50 ms", "p99 ms", "ratio")
    rows = []
    for one in measured:
        ratio = f"{one.ratio:.3g}" + (f" ({one.uncounted})" if one.uncounted else "")
        sides = ((one.subjects, ratio), (one.yardsticks, ""))
        for periods, shown in sides:
            rows.append(
                (
                    periods[0].subject + ("" if shown else " (yardstick)"),
                    _load(one, periods),
                    f"{median(periods, 'per_second'):,.0f}",
                    f"{median(periods, 'p50_ms'):.2f}",
                    f"{median(periods, 'p99_ms'):.1f}",
                    shown,
                )
            )
    yield from table(head, rows)


def _load(one: Measurement, periods: Sequence[Period]) -> str:
    return "¼ of the rate" if one.row.figure is Figure.TAIL else str(periods[0].callers)


def _costs(measured: Sequence[Measurement]) -> Iterator[str]:
    yield "### Processor time"
    yield ""
    yield (
        "Microseconds per unit of work, by process; in parentheses the part of one core that the "
        "process used. *Statements* is the time that sessions of PostgreSQL spent in statements, "
        "waiting included, *syncs* the number of syncs of its log; both per step, and both sides' "
        "if the yardstick uses PostgreSQL too."
    )
    yield ""
    names = sorted({name for one in measured for name in one.cpu_us} - {LOAD, OTHER})
    head = ("what", "callers", *names, LOAD, "statements", "syncs", "largest replica, MB")
    rows = []
    for one in measured:
        cells = [
            f"{one.cpu_us[name]:,.0f} ({one.cores[name]:.0%})" if name in one.cpu_us else ""
            for name in (*names, LOAD)
        ]
        rows.append(
            (
                one.subjects[0].subject,
                _load(one, one.subjects),
                *cells,
                f"{one.statements_us_per_step:,.0f}",
                f"{one.syncs_per_step:.2f}",
                f"{_largest_mb(one):.0f}",
            )
        )
    yield from table(head, rows)


def _largest_mb(one: Measurement) -> float:
    """The memory of the largest service, at the end of the row."""
    rss_bytes = one.subjects[-1].rss_bytes
    services = ("balance", "coupon", "order", "payment")
    return max((rss_bytes.get(name, 0) for name in services), default=0) / 1e6


def _memory(memory: Sequence[Memory]) -> Iterator[str]:
    yield "### Memory under each kind of load in turn"
    yield ""
    yield f"Resident memory of a replica; target: at most {RSS_MAX_MB} MB, and flat."
    yield ""
    rows = [
        (
            one.service,
            f"{one.mb[0]:.0f}",
            f"{one.highest_mb:.0f}",
            f"{one.growth:+.1%}",
            "reached" if one.holds else "missed",
        )
        for one in memory
    ]
    head = ("replica", "first MB", "highest MB", "second to last third", "verdict")
    yield from table(head, rows)


def _audits(audits: dict[str, Audit]) -> Iterator[str]:
    yield "### Audit"
    yield ""
    for part, audit in audits.items():
        yield f"- {part}: {audit.lines[-1] if audit.lines else 'no output'}"


def median(periods: Sequence[Period], what: str) -> float:
    """The median of an attribute over the rounds."""
    ordered = sorted(float(getattr(period, what)) for period in periods)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
