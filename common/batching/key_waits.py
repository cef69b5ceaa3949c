"""Commands that wait for a busy Redis lock, until its owner frees it.

They leave the lane, so that a busy key holds up no other command, and hold no key meanwhile. The
release of the key wakes them; without a message of it they wait for ``Limits.busy_key_s``. Then
they are in the next batch of the lane, from the beginning. A command that has waited for so long
goes on without its lock, which orders contenders and refuses none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Generic, TypeVar

from prometheus_client import Counter

from common.batching.outcomes import Limits, QueuedCommand
from common.locking.locks import BusyKey, Keys
from common.metrics import REGISTRY, from_zero

C = TypeVar("C")
R = TypeVar("R")

_ended = Counter(
    "tally_lock_waits",
    "Waits of lanes for a busy Redis lock, by how they ended: released (its message arrived, or "
    "may have been missed) or limit (of the time that a command waits).",
    ("end",),
    registry=REGISTRY,
)
from_zero(_ended, ("released", "limit"))


class KeyWaits(Generic[C, R]):
    """The commands of a lane that wait, by the key that they wait for."""

    def __init__(
        self,
        resume: Callable[[list[QueuedCommand[C, R]]], None],
        fail: Callable[[list[QueuedCommand[C, R]], BaseException], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
        limits: Limits,
    ) -> None:
        """``resume`` is called with commands that wait no longer."""
        self._resume = resume
        self._fail = fail
        self._spawn = spawn
        self._limits = limits
        self._waiting: dict[str, list[QueuedCommand[C, R]]] = {}

    def join(self, entries: list[QueuedCommand[C, R]]) -> list[QueuedCommand[C, R]]:
        """Let the commands wait that need a key for which others wait; returns the rest.

        Redis is not asked again for a key before there is a reason to expect another reply.
        """
        if not self._waiting:
            return entries
        rest = []
        for entry in entries:
            key = next((key for key in entry.lock_keys if key in self._waiting), None)
            if key is not None and self._may_wait(entry):
                self._waiting[key].append(entry)
            else:
                rest.append(entry)
        return rest

    def without_busy(
        self, entries: Sequence[QueuedCommand[C, R]], busy: Mapping[Keys, BusyKey]
    ) -> list[QueuedCommand[C, R]]:
        """The commands to decide now. Those of a busy key wait, if they have not waited enough."""
        rest = []
        for entry in entries:
            found = busy.get(entry.lock_keys)
            if found is None or not self._may_wait(entry):
                rest.append(entry)
            elif found.key in self._waiting:
                self._waiting[found.key].append(entry)
            else:
                waiting = self._waiting[found.key] = [entry]
                self._spawn(self._wait(found, waiting))
        return rest

    def _may_wait(self, entry: QueuedCommand[C, R]) -> bool:
        now = asyncio.get_running_loop().time()
        if entry.locked_since is None:
            entry.locked_since = now
        return now - entry.locked_since < self._limits.busy_key_s

    async def _wait(self, busy: BusyKey, waiting: list[QueuedCommand[C, R]]) -> None:
        """Wait for the key as long as the first of its commands may."""
        first_s = waiting[0].locked_since
        assert first_s is not None
        end = "released"
        try:
            async with asyncio.timeout_at(first_s + self._limits.busy_key_s):
                await busy.freed.wait()
        except TimeoutError:
            end = "limit"
        except BaseException as error:
            self._fail(waiting, error)
            raise
        finally:
            del self._waiting[busy.key]
        _ended.labels(end).inc()
        self._resume(waiting)
