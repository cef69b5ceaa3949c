"""Stop signals: the first one ends a local program, in good order, wherever it is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from types import FrameType
from typing import Any, Final, TypeVar

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_STOPPED: Final = 130

T = TypeVar("T")


class Stopped(BaseException):
    """The user stopped the program. Not an Exception: no handler may take it for a failure."""


def raise_on_stop_signals() -> None:
    """From now on, a stop signal raises Stopped in the main thread."""
    for number in STOP_SIGNALS:
        signal.signal(number, _raise_stopped)


def ignore_stop_signals() -> None:
    """From now on, no signal interrupts an orderly stop: neither a second Ctrl-C nor a SIGTERM.

    The handler does nothing. With SIG_IGN, Python complains on stderr about a signal that arrives
    just before it is set.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)


def run_stoppable(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, run in an event loop; raises Stopped after a stop signal.

    The signal cancels the task. An exception from a signal handler would be raised in whatever
    callback the loop runs at that moment.
    """
    stopped = False

    async def body() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(_number: int, _frame: FrameType | None) -> None:
            nonlocal stopped
            stopped = True
            ignore_stop_signals()
            loop.call_soon_threadsafe(task.cancel)

        for number in STOP_SIGNALS:
            signal.signal(number, stop)
        return await work

    try:
        return asyncio.run(body())
    except asyncio.CancelledError:
        raise Stopped from None
    finally:
        if not stopped:
            raise_on_stop_signals()


def _raise_stopped(_number: int, _frame: FrameType | None) -> None:
    ignore_stop_signals()
    raise Stopped
