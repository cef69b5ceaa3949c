"""Work beside the calls: when it begins, what it survives and tells, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from sqlalchemy.exc import ProgrammingError
from structlog.testing import capture_logs

from common import tasks
from common.db.engines import Database, open_engines
from common.db.errors import UNDEFINED_TABLE
from common.errors import DatabaseUnavailable
from common.tasks import PeriodicJob, run_periodic_jobs

SHORT_S = 0.001
FAILED = "background_work_failed"


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    """One that has been found fit; nobody connects to it."""
    opened = open_engines("postgresql://u:p@127.0.0.1:1/d", application_name="none", pool_size=4)
    opened.checked.set()
    yield opened
    await opened.close()


class Runs:
    """A work that begins with these outcomes, then goes well; it can be waited for."""

    def __init__(self, *outcomes: BaseException) -> None:
        self._outcomes = list(outcomes)
        self.count = 0
        self.went_well = asyncio.Event()

    async def __call__(self, stopping: asyncio.Event) -> None:
        self.count += 1
        if self._outcomes:
            raise self._outcomes.pop(0)
        self.went_well.set()


async def test_nothing_is_done_before_the_database_was_found_fit(database: Database) -> None:
    database.checked.clear()
    runs = Runs()
    async with run_periodic_jobs(database, PeriodicJob("w", SHORT_S, runs)):
        for _ in range(10):
            await asyncio.sleep(0)
        assert not runs.count
        database.checked.set()
        await runs.went_well.wait()


async def test_where_it_never_was_the_end_comes_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "FINISH_S", 300.0)
    database.checked.clear()
    runs = Runs()
    async with run_periodic_jobs(database, PeriodicJob("w", SHORT_S, runs)):
        await asyncio.sleep(0)
    assert not runs.count


async def test_a_cancellation_from_within_is_a_failure_and_no_end(database: Database) -> None:
    runs = Runs(asyncio.CancelledError("of something inside"))
    with capture_logs() as logged:
        async with run_periodic_jobs(database, PeriodicJob("w", SHORT_S, runs)):
            await runs.went_well.wait()
    assert "CancelledError" in next(line["error"] for line in logged if line["event"] == FAILED)


class Lacking(Exception):  # noqa: N818 - the driver's name for it ends in Error
    sqlstate = UNDEFINED_TABLE


async def test_a_table_that_is_gone_is_told(database: Database) -> None:
    """Readiness looks at the schema's revision only."""
    runs = Runs(ProgrammingError("SELECT", {}, Lacking()))
    with capture_logs() as logged:
        async with run_periodic_jobs(database, PeriodicJob("w", SHORT_S, runs)):
            await runs.went_well.wait()
    assert [line["work"] for line in logged if line["event"] == FAILED] == ["w"]


async def test_a_database_that_is_away_is_left_to_readiness_to_tell(database: Database) -> None:
    runs = Runs(DatabaseUnavailable())
    with capture_logs() as logged:
        async with run_periodic_jobs(database, PeriodicJob("w", SHORT_S, runs)):
            await runs.went_well.wait()
    assert runs.count > 1
    assert not logged


async def test_a_run_in_progress_is_finished(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "FINISH_S", 300.0)
    begun, release = asyncio.Event(), asyncio.Event()
    finished: list[bool] = []

    async def run(stopping: asyncio.Event) -> None:
        begun.set()
        await release.wait()
        finished.append(stopping.is_set())

    async with run_periodic_jobs(database, PeriodicJob("w", SHORT_S, run)):
        await begun.wait()
        asyncio.get_running_loop().call_soon(release.set)
    assert finished == [True]


async def test_a_backlog_is_left_where_it_stands(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "FINISH_S", 300.0)
    begun = asyncio.Event()

    async def run(stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            begun.set()
            await asyncio.sleep(0)

    async with run_periodic_jobs(database, PeriodicJob("w", SHORT_S, run)):
        await begun.wait()


async def test_runs_that_hang_are_cut_off_together(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "FINISH_S", 0.05)
    begun = asyncio.Semaphore(0)

    async def hang(stopping: asyncio.Event) -> None:
        begun.release()
        await asyncio.Event().wait()

    with capture_logs() as logged:
        async with run_periodic_jobs(
            database, *(PeriodicJob(name, SHORT_S, hang) for name in "ab")
        ):
            await begun.acquire()
            await begun.acquire()
    assert sorted((line["event"], line["work"]) for line in logged) == [
        ("background_work_cut_off", "a"),
        ("background_work_cut_off", "b"),
    ]


async def test_not_even_what_does_not_let_itself_be_cut_off_is_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a driver that closes a connection over which nothing comes."""
    monkeypatch.setattr(tasks, "FINISH_S", 0.05)
    monkeypatch.setattr(tasks, "CUT_OFF_S", 0.05)
    begun, closed = asyncio.Event(), asyncio.Event()
    runs = set[asyncio.Task[bool]]()

    async def close(stopping: asyncio.Event) -> None:
        begun.set()
        closing = asyncio.create_task(closed.wait())
        runs.add(closing)
        while not closing.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(closing)

    async with run_periodic_jobs(database, PeriodicJob("w", SHORT_S, close)):
        await begun.wait()
    assert not closed.is_set()
    closed.set()
    await asyncio.wait(runs)
