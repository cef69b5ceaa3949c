"""Single reads in batches: one statement loads the values of all callers that wait.

A read of its own for each call costs more than a write in a lane: a connection, a statement and a
round trip. Here many calls share them, and many calls of one key share its row.

An idle loader adds no wait: a statement is sent at once, for one caller. While IN_FLIGHT_MAX
statements run, callers gather for the next one. A caller never joins a statement that was sent
before it came: its value was read after it asked, so it sees all that was committed by then. On a
busy processor a batch waits for callers first (``common.batching.gathering``).

A batch that fails is repeated once if its session was lost (``common.db.repeat``). If one of its
keys may be the cause, it is halved, down to single keys: one key that fails, fails alone.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final, Generic, TypeAlias, TypeVar

from prometheus_client import Histogram

from common.batching.gathering import Gathering
from common.db.database import Database
from common.db.errors import Fault, classify
from common.db.repeat import read
from common.db.statements import Connection
from common.errors import Overloaded, Refusal
from common.ids import is_id
from common.metrics import REGISTRY

K = TypeVar("K")
V = TypeVar("V")

BATCH_MAX: Final = 256
"""Callers whose values one statement loads."""
IN_FLIGHT_MAX: Final = 2
"""Statements of one loader at once: while one is on its way, the next is sent."""
DEPTH_MAX: Final = 4_096
"""Callers that wait for a statement; beyond them, callers are refused with OVERLOADED."""
CLOSE_S: Final = 1.0
"""How long closing waits for reads. The calls that wait for them are over by then."""
DIVIDE_S: Final = 12.0
"""How long a batch that fails is divided; then all that is left of it fails."""
_DIVIDED: Final = {Fault.COMMAND, Fault.SLOW, Fault.UNEXPECTED}
"""Faults that one key may have caused."""

_sizes = Histogram(
    "tally_loader_batch_calls",
    "Calls whose values were loaded together.",
    ("loader",),
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    registry=REGISTRY,
)

_Callers: TypeAlias = dict[K, list[asyncio.Future[V]]]


class BatchLoader(Generic[K, V]):
    """One kind of read in this replica, of values ``V`` by keys ``K``.

    The loader owns its statements: no caller that goes away, and no caller's deadline, ends one.
    """

    def __init__(
        self,
        name: str,
        database: Database,
        read: Callable[[Connection, Sequence[K]], Awaitable[Sequence[V | Exception]]],
    ) -> None:
        """``read``: one value per key, in their order, all from one statement or a few.

        An exception in the place of a value is raised to the callers of this key. Keys differ.
        """
        self.name = name
        self._database = database
        self._read = read
        self._queue: deque[tuple[K, asyncio.Future[V]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathering = Gathering()
        self._observe = _sizes.labels(name).observe

    async def load(self, key: K) -> V:
        """The value for the key, as committed when this was called or later.

        Callers of one key share the object: none may change it.

        Raises DatabaseUnavailable or Overloaded.
        """
        if len(self._queue) >= DEPTH_MAX:
            raise Overloaded(loader=self.name)
        value: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._queue.append((key, value))
        if len(self._tasks) < IN_FLIGHT_MAX and not self._gathering.waiting:
            self._begin()
        return await value

    async def close(self) -> None:
        """Wait until no read is running, for CLOSE_S at most; then end those that are."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(set(self._tasks), timeout=CLOSE_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    def _begin(self) -> None:
        # In a context of its own: the task outlives the call that happened to start it.
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._run(), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._queue and not self._gathering.waiting:
            # A caller came between the task's last look at the queue and its end.
            self._begin()

    async def _run(self) -> None:
        callers: _Callers[K, V] = {}
        try:
            while self._queue and not self._gathering.waiting:
                waited = await self._gathering.wait()
                callers = self._next_batch()
                if waited:
                    self._gathering.found(sum(map(len, callers.values())))
                await self._load(callers)
        except BaseException as error:
            # Such as a CancelledError that the driver raised: nobody may wait for ever.
            _reply((value for values in callers.values() for value in values), error)
            _reply((value for _, value in self._queue), error)
            self._queue.clear()
            raise

    def _next_batch(self) -> _Callers[K, V]:
        """Who waits, by key, up to BATCH_MAX; without those that have gone."""
        callers: _Callers[K, V] = {}
        size = 0
        while self._queue and size < BATCH_MAX:
            key, value = self._queue.popleft()
            if not value.done():
                callers.setdefault(key, []).append(value)
                size += 1
        if size:
            self._observe(size)
        return callers

    async def _load(self, callers: _Callers[K, V]) -> None:
        """Reply to every caller, in as few statements as possible."""
        clock = asyncio.get_running_loop().time
        until = clock() + DIVIDE_S
        parts = [list(callers)]
        while parts:
            keys = [key for key in parts.pop() if not all(one.done() for one in callers[key])]
            if not keys:
                continue
            try:
                values = await read(self._database, partial(self._statement, keys=keys))
            except Exception as error:  # noqa: BLE001 - a caller of the batch gets it
                over = clock() >= until
                if len(keys) > 1 and not over and _may_be_of_one_key(error):
                    middle = len(keys) // 2
                    parts += [keys[middle:], keys[:middle]]
                    continue
                failed = [*keys, *(key for part in parts for key in part)] if over else keys
                parts = [] if over else parts
                for key in failed:
                    _reply(callers[key], error)
            else:
                for key, value in zip(keys, values, strict=True):
                    _reply(callers[key], value)

    async def _statement(
        self, connection: Connection, keys: Sequence[K]
    ) -> Sequence[V | Exception]:
        values = await self._read(connection, keys)
        assert len(values) == len(keys), "one value per key"
        return values


async def load_by_id(loader: BatchLoader[str, V | None], id_: str) -> V | None:
    """The value for the id; None, without asking, for text that cannot be an id.

    Raises DatabaseUnavailable or Overloaded.
    """
    return await loader.load(id_) if is_id(id_) else None


def _may_be_of_one_key(error: Exception) -> bool:
    """Whether a smaller statement, without one of the keys, may succeed."""
    # ``read`` raises what the database did as a refusal, and keeps the cause.
    cause = error.__cause__ if isinstance(error, Refusal) else error
    return isinstance(cause, Exception) and classify(cause) in _DIVIDED


def _reply(waiting: Iterable[asyncio.Future[V]], value: V | BaseException) -> None:
    """Reply to those of the callers that still wait."""
    for one in waiting:
        if one.done():
            continue
        if isinstance(value, BaseException):
            one.set_exception(value)
        else:
            one.set_result(value)
