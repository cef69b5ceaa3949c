"""The metrics of a lane: its commands, how long they wait, and how long batches hold their rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from common.batching.outcomes import QueuedCommand
from common.metrics import LATENCY_BUCKETS_S, REGISTRY

C = TypeVar("C")
R = TypeVar("R")

LOCK_BUCKETS_S: Final = (*LATENCY_BUCKETS_S, 30.0, 60.0)

_conflicts = Counter(
    "tally_lane_version_conflicts",
    "Commands decided again since their row had changed between reading and writing, by lane.",
    ("lane",),
    registry=REGISTRY,
)
_exhausted = Counter(
    "tally_lane_retries_exhausted",
    "Commands refused with CONFLICT_RETRIES_EXHAUSTED, by lane: others kept their rows.",
    ("lane",),
    registry=REGISTRY,
)
_commands = Gauge(
    "tally_lane_commands",
    "Commands that wait in a lane or are being decided, by lane; at its limit it is OVERLOADED.",
    ("lane",),
    registry=REGISTRY,
)
_oldest = Gauge(
    "tally_lane_oldest_wait_seconds",
    "How long the oldest of the commands in a lane has been there, by lane, in seconds; 0 if there "
    "are none.",
    ("lane",),
    registry=REGISTRY,
)
_lock_wait = Histogram(
    "tally_lane_lock_wait_seconds",
    "Time from a command's finding its lock in Redis, or its row, held by others until it left the "
    "lane, in seconds. A command that finds them free is not counted.",
    ("lane",),
    buckets=LOCK_BUCKETS_S,
    registry=REGISTRY,
)
LOCK_HOLD: Final = Histogram(
    "tally_lane_lock_hold_seconds",
    "Time from the begin of a batch's transaction, in which it holds rows, to the end of its "
    "COMMIT or rollback, or until a COMMIT is given up, in seconds. Waiting for a connection and "
    "pauses between tries are not in it.",
    ("lane",),
    buckets=LOCK_BUCKETS_S,
    registry=REGISTRY,
)


class LaneMetrics(Generic[C, R]):
    """What one lane counts and measures."""

    def __init__(self, lane: str, depth: Callable[[], int]) -> None:
        """``depth``: how many commands of single calls are in the lane."""
        self.conflicts: Final = _conflicts.labels(lane)
        self.exhausted: Final = _exhausted.labels(lane)
        self._inside: dict[QueuedCommand[C, R], float] = {}
        """When each command in the lane has entered it, the oldest first."""
        self._lock_wait = _lock_wait.labels(lane)
        _commands.labels(lane).set_function(depth)
        _oldest.labels(lane).set_function(self._oldest_s)

    def enter(self, entry: QueuedCommand[C, R]) -> None:
        """Note a command that enters the lane."""
        self._inside[entry] = time.monotonic()

    def leave(self, entry: QueuedCommand[C, R]) -> None:
        """Note a command that leaves it, for whatever reason."""
        del self._inside[entry]
        if entry.locked_since is not None:
            self._lock_wait.observe(asyncio.get_running_loop().time() - entry.locked_since)

    def _oldest_s(self) -> float:
        # Called in another thread: the copy is made at once, while the loop cannot change it.
        entered = tuple(self._inside.values())
        return time.monotonic() - entered[0] if entered else 0.0
