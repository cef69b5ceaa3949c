"""What the tasks of the process wait for, written to the log when an operator asks (SIGUSR1).

Names of functions, files and lines only: no arguments, no values.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections import Counter
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

import structlog

LINES_MAX: Final = 500
SAME_MAX: Final = 10
"""Lines of tasks that wait at the same place: a thousand callers must not hide what they wait
for."""
DEPTH_MAX: Final = 40

# What a coroutine, a generator and an async generator wait for, and where each of them is.
_AWAITED: Final = ("cr_await", "gi_yieldfrom", "ag_await")
_FRAMES: Final = ("cr_frame", "gi_frame", "ag_frame")
_CODES: Final = ("cr_code", "gi_code", "ag_code")

_log = structlog.stdlib.get_logger()


class _Waiting(NamedTuple):
    """A task as it is written."""

    task: str
    work: str
    at: tuple[str, ...]
    waits_for: str


def write_tasks() -> None:
    """Write a line for each task of the running loop, LINES_MAX at most."""
    tasks = [_waiting(task) for task in asyncio.all_tasks()]
    written = 0
    places: Counter[tuple[str, ...]] = Counter()
    # Those at a place of their own first: a task that holds up many others is one of them.
    alike = Counter(each.at for each in tasks)
    for each in sorted(tasks, key=lambda one: (alike[one.at], one)):
        places[each.at] += 1
        if places[each.at] > SAME_MAX or written == LINES_MAX:
            continue
        written += 1
        _log.info("task", **each._asdict())
    _log.info("tasks_written", tasks=len(tasks), left_out=len(tasks) - written)


def _waiting(task: asyncio.Task[Any]) -> _Waiting:
    coroutine = task.get_coro()
    at: list[str] = []
    one: Any = coroutine
    while one is not None and len(at) < DEPTH_MAX:
        if place := _place(one):
            at.append(place)
        one = _awaited(one)
    # The only way to know which task holds up another one.
    waiter = getattr(task, "_fut_waiter", None)
    waits_for = waiter.get_name() if isinstance(waiter, asyncio.Task) else ""
    return _Waiting(task.get_name(), _name(coroutine), tuple(at), waits_for)


def _place(one: object) -> str:
    """Where it waits, as ``rpc/handlers.py:225 handle``; '' if it is no function of Python."""
    frame: FrameType | None = _first(one, _FRAMES)
    code: CodeType | None = _first(one, _CODES)
    if code is None:
        return ""
    file = PurePath(code.co_filename)
    # Compiled code has no lines.
    line = None if frame is None else frame.f_lineno
    return f"{file.parent.name}/{file.name}{'' if line is None else f':{line}'} {code.co_name}"


def _awaited(one: object) -> object:
    if any(hasattr(one, name) for name in _AWAITED):
        return _first(one, _AWAITED)
    # The iterators between refer to what they drive, without an attribute: that of an async
    # generator, and that of a coroutine which compiled code awaits, as gRPC's does.
    driven = (inspect.isasyncgen, inspect.iscoroutine)
    return next((each for each in gc.get_referents(one) if any(is_(each) for is_ in driven)), None)


def _first(one: object, names: tuple[str, ...]) -> Any:
    return next((found for name in names if (found := getattr(one, name, None)) is not None), None)


def _name(coroutine: object) -> str:
    return str(getattr(coroutine, "__qualname__", type(coroutine).__name__))
