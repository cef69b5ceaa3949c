"""The lines about tasks: where each is, what it waits for, and how many lines there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from common import task_dump

SECRET = "hunter2"


async def waits(event: asyncio.Event, secret: str) -> str:
    await event.wait()
    return secret


async def nests(event: asyncio.Event) -> None:
    await waits(event, SECRET)


async def generates(event: asyncio.Event) -> AsyncIterator[str]:
    yield "begun"
    await waits(event, SECRET)


async def iterates(event: asyncio.Event) -> None:
    async for _ in generates(event):
        pass


@asynccontextmanager
async def running(*works: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """The works as tasks, named by their position, which have run until they wait."""
    tasks = [asyncio.create_task(work, name=str(number)) for number, work in enumerate(works)]
    for _ in range(3):
        await asyncio.sleep(0)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def written() -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The lines by the task's name, and the last line."""
    with capture_logs() as logged:
        task_dump.write_tasks()
    *lines, last = (dict(line) for line in logged)
    return {line["task"]: line for line in lines}, last


def functions(line: dict[str, Any]) -> list[str]:
    return [place.rpartition(" ")[2] for place in line["at"]]


async def test_a_line_has_the_functions_that_wait_for_each_other() -> None:
    event = asyncio.Event()
    async with running(nests(event), iterates(event)):
        lines, last = written()
    assert functions(lines["0"]) == ["nests", "waits", "wait"]
    assert functions(lines["1"]) == ["iterates", "generates", "waits", "wait"]
    assert lines["0"]["work"] == "nests"
    assert lines["0"]["at"][0].startswith("common/test_task_dump.py:")
    assert lines["0"]["at"][2].startswith("asyncio/locks.py:")
    assert last["tasks"] == len(lines) == 3  # this test's own task is one
    assert SECRET not in str(lines)


async def test_a_line_names_the_task_that_is_waited_for() -> None:
    async def waits_for(task: asyncio.Task[str]) -> None:
        await task

    inner = asyncio.create_task(waits(asyncio.Event(), SECRET), name="inner")
    async with running(waits_for(inner)):
        lines, _ = written()
    assert lines["0"]["waits_for"] == "inner"
    assert lines["inner"]["waits_for"] == ""
    assert inner.cancelled()


async def test_many_tasks_at_one_place_do_not_hide_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    event = asyncio.Event()
    many = [nests(event) for _ in range(100)]
    async with running(*many, iterates(event)):
        lines, last = written()
        monkeypatch.setattr(task_dump, "LINES_MAX", 5)
        fewer, cut = written()
    assert len(lines) == task_dump.SAME_MAX + 2
    assert functions(lines["100"])[0] == "iterates"
    assert (last["tasks"], last["left_out"]) == (102, 102 - len(lines))
    assert len(fewer) == 5
    assert "100" in fewer
    assert cut["left_out"] == 97
