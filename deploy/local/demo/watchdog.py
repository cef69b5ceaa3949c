"""Kills one replica, and watches all other processes of the stack."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from deploy.local.errors import RunnerError
from deploy.local.processes import Child
from deploy.local.stack import Stack

WATCH_INTERVAL_S: Final = 0.2
EXPENDABLE: Final = frozenset({"valkey"})
"""It stores nothing that the sale needs."""

T = TypeVar("T")


class StackBroken(RunnerError):  # noqa: N818 - a fact, not a fault of this program
    """A process died that the demo did not kill."""


class Watchdog:
    """Detects processes that die. One is killed on purpose; another one ends the demo."""

    def __init__(self, stack: Stack, warn: Callable[[str], None]) -> None:
        self.victim: Child | None = None
        self._stack = stack
        self._warn = warn

    def kill_one(self, seed: int) -> Child:
        """Kill -9 a replica that the seed selects."""
        chance = random.Random(seed)  # noqa: S311 - not for secrets
        replicas = sorted(self._stack.replicas.values(), key=lambda child: child.name)
        self.victim = chance.choice(replicas)
        self.victim.send(signal.SIGKILL)
        return self.victim

    def check(self) -> None:
        """Raise StackBroken if a process died that the sale needs."""
        for child in self._stack.newly_dead():
            if child is self.victim:
                continue
            what = f"{child.name} (pid {child.pid}) died, and the demo did not kill it"
            if child.name not in EXPENDABLE:
                raise StackBroken(f"{what}; its log is {child.log_file}")
            self._warn(f"{what}; the sale goes on without it")

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``. If the stack breaks, it is cancelled and StackBroken raised."""
        working = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._check_forever())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            return working.result()
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _check_forever(self) -> None:
        while True:
            self.check()
            await asyncio.sleep(WATCH_INTERVAL_S)
