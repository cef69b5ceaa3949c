"""Stop signals: each of them ends the demo once, cleanly, wherever it is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from types import FrameType
from typing import Any, Final, TypeVar

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

T = TypeVar("T")


class Stopped(BaseException):
    """The user asked to stop. Not an Exception: nothing on the way may take it for a failure."""


def stop_on_signals() -> None:
    """From now on a stop signal raises Stopped, in whatever runs outside an event loop."""
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)


def ignore_signals() -> None:
    """Let nothing cut a clean stop short. Not SIG_IGN: see deploy.local.__main__."""
    for number in STOP_SIGNALS:
        signal.signal(number, _go_on)


def run_stoppable(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns, run in an event loop; Stopped once a stop signal has cancelled it.

    An exception raised by a signal's handler inside a loop would end in some callback; the loop's
    own way is to cancel.
    """
    stopped = False

    async def body() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop() -> None:
            nonlocal stopped
            if not stopped:
                stopped = True
                task.cancel()

        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, stop)
        try:
            return await work
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)
            if stopped:
                ignore_signals()
            else:
                stop_on_signals()

    try:
        return asyncio.run(body())
    except asyncio.CancelledError:
        raise Stopped from None


def _stop(_number: int, _frame: FrameType | None) -> None:
    ignore_signals()
    raise Stopped


def _go_on(_number: int, _frame: FrameType | None) -> None:
    pass
