"""The one replica that is killed, and the watch over everything else."""

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
"""Holds no truth: the sale has to go on without it."""

T = TypeVar("T")


class StackBroken(RunnerError):  # noqa: N818 - a fact, not a fault of this program
    """A process died that the demo did not kill."""


class Watch:
    """Sees processes of the stack die: the victim is expected, anything else ends the demo."""

    def __init__(self, stack: Stack, say: Callable[[str], None]) -> None:
        self.victim: Child | None = None
        self._stack = stack
        self._say = say
        self._told: set[int] = set()

    def kill_one(self, seed: int) -> Child:
        """Kill -9 a replica of the seed's choice."""
        chance = random.Random(seed)  # noqa: S311 - not for secrets
        replicas = sorted(self._stack.replicas.values(), key=lambda child: child.name)
        self.victim = chance.choice(replicas)
        self.victim.send(signal.SIGKILL)
        return self.victim

    def look(self) -> None:
        """Raises StackBroken if the stack is not whole any more."""
        for child in self._stack.children:
            if child is self.victim or child.pid in self._told or child.exit_code() is None:
                continue
            self._told.add(child.pid)
            what = f"{child.name} (pid {child.pid}) died, and the demo did not kill it"
            if child.name not in EXPENDABLE:
                raise StackBroken(f"{what}; its log is {child.log_file}")
            self._say(f"{what}; the sale goes on without it")

    async def over(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns; it is cancelled, and StackBroken raised, if the stack breaks."""
        at_work = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._until_broken())
        try:
            await asyncio.wait({at_work, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            return at_work.result()
        finally:
            for task in (at_work, watching):
                task.cancel()
            await asyncio.gather(at_work, watching, return_exceptions=True)

    async def _until_broken(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(WATCH_INTERVAL_S)
