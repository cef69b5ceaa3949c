"""One row: its subject and its yardstick in turn, round after round."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.figures import Measurement, Period
from benchmarks.postgres import postgres_use, sync_ms
from benchmarks.processes import usage
from benchmarks.rows import Figure, Row
from benchmarks.subjects import Load, Subject

REPORT_INTERVAL_S: Final = 1.1
FURTHER_S: Final = 0.05
TAIL_PART: Final = 0.25
"""Of the top rate, in the rows on tail latency."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long everything takes."""

    rounds: int
    seconds: float
    """Of one period."""
    warm_up_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows are measured: the subjects by name, and the PostgreSQL that they use."""

    subjects: Mapping[str, Subject]
    admin_url: str
    folder: Path
    """On the disk of PostgreSQL's data."""


async def measure(row: Row, callers: int, place: Place, timing: Timing) -> Measurement:
    """Run the rounds. Yardstick and subject alternate, so that noise meets both alike."""
    subject, yardstick = place.subjects[row.subject], place.subjects[row.yardstick]
    warm_up = Load(callers, timing.warm_up_s)
    load = Load(callers, timing.seconds)
    yardstick_callers = row.yardstick_callers or callers
    await period(yardstick, replace(warm_up, callers=yardstick_callers))
    top = await period(subject, warm_up)
    if row.figure is Figure.TAIL:
        load = replace(load, per_second=top.steps / top.seconds * TAIL_PART)
    await _report_statistics(row, subject)
    before = await postgres_use(place.admin_url)
    subjects, yardsticks, syncs_ms = [], [], []
    for _ in range(timing.rounds):
        yardsticks.append(await period(yardstick, replace(load, callers=yardstick_callers)))
        subjects.append(await period(subject, load))
        syncs_ms.append(sync_ms(place.folder))
    further_steps = await _report_statistics(row, subject)
    after = await postgres_use(place.admin_url)
    return Measurement(
        row,
        callers,
        subjects,
        yardsticks,
        after.since(before),
        sum(period.steps for period in subjects) + further_steps,
        statistics.median(syncs_ms),
    )


async def _report_statistics(row: Row, subject: Subject) -> int:
    """Let PostgreSQL's sessions report what they have done; the steps that this took.

    A session reports after a transaction, at most once per second. Only a row that subtracts the
    syncs needs them to be exact.
    """
    if row.figure is not Figure.LATENCY_LESS_SYNCS:
        return 0
    await asyncio.sleep(REPORT_INTERVAL_S)
    return (await period(subject, Load(row.at, FURTHER_S))).steps


async def period(subject: Subject, load: Load) -> Period:
    """Run the load once, and read what every process used meanwhile."""
    async with subject.session(load) as run:
        before = usage()
        sample = await run()
        after = usage()
    return Period(
        subject.name,
        load.callers,
        sample.done * subject.units,
        sample.seconds,
        sample.percentile_ms(50),
        sample.percentile_ms(99),
        sample.done,
        sample.failed,
        after.since(before),
        after.rss_bytes,
    )
