"""The crash matrix: cells in batches on one stack, healed and audited after each batch.

A batch has a few cells of different places at once. If its books do not balance, each of its cells
runs again alone, on a new stack, so that the fault has one name.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from common.failpoints import Action, Armed, Fired, arm, disarm_all, fired, reached
from tests.faults.books import unfinished, wrong
from tests.faults.load import Customers, Replies, fresh_stack
from tests.faults.places import FIRST_RUN, NAMES, RECOVERY, Cell
from tests.faults.stack import FaultyStack, beside
from tests.support.orders import Shop

LEASE_S: Final = 1.0
PAUSE_S: Final = 2.5 * LEASE_S
FIRE_LIMIT_S: Final = 15.0
"""How long the load goes on for failpoints that have not fired."""
ROUND_S: Final = 0.5
"""Between the beginnings of two rounds of customers, at least."""
ROUNDS_MAX: Final = 3
"""Rounds at once: the machine must not be what is slow."""
STILL_S: Final = 0.4
"""From the interruption to the cell's fault: what was in flight elsewhere has ended, and the lease
of what was interrupted has not."""
BUSY_S: Final = 0.5
"""How long customers come before a process is killed."""
TRIES_MAX: Final = 3
LISTED_MAX: Final = 40
"""Lines that are reported of one breach."""
BROKEN_MAX: Final = 5
"""Cells that did not hold, after which the run ends: each costs a stack."""
SETTINGS: Final = {
    "TALLY_ORDER_SAGA_LEASE_S": f"{LEASE_S}",
    "TALLY_ORDER_SAGA_SWEEP_INTERVAL_S": "0.2",
    "TALLY_ORDER_SAGA_BACKOFF_MAX_S": "0.5",
    "TALLY_ORDER_SAGA_ATTENTION_S": "0.5",
    "TALLY_ORDER_PAY_WITHIN_S": "20",
    "TALLY_ORDER_ORDER_EXPIRY_S": "4",
    "TALLY_ORDER_EXPIRY_INTERVAL_S": "0.3",
    "TALLY_PAYMENT_LEASE_S": f"{LEASE_S}",
    "TALLY_PAYMENT_CONFIRM_WINDOW_S": "3",
    "TALLY_PAYMENT_RESOLVE_INTERVAL_S": "0.2",
    "TALLY_PAYMENT_GATEWAY_TIMEOUT_S": "1",
    "TALLY_READINESS_INTERVAL_S": "0.3",
    "TALLY_GRACE_S": "1",
}
_AT_ONCE: Final = {
    FIRST_RUN: {"order": 3, "payment": 2, "balance": 2, "coupon": 2},
    RECOVERY: {"order": 2, "payment": 3, "balance": 2, "coupon": 2},
}
"""Cells of one batch, by service: each has two replicas."""
_POLL_S: Final = 0.02


@dataclass
class Results:
    """What became of the cells."""

    held: set[Cell] = field(default_factory=set)
    broken: dict[Cell, list[str]] = field(default_factory=dict)
    never_fired: set[Cell] = field(default_factory=set)
    not_run: set[Cell] = field(default_factory=set)
    unlisted: set[str] = field(default_factory=set)
    """Places that were passed and are in no list."""
    orders: int = 0
    restarts: int = 0
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return not (self.broken or self.never_fired or self.not_run or self.unlisted)


def batches(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that run at once: of one phase and interruption, at different failpoints."""
    grouped: list[list[Cell]] = []
    waiting = list(cells)
    while waiting:
        batch: list[Cell] = []
        for cell in list(waiting):
            if _fits(cell, batch):
                batch.append(cell)
                waiting.remove(cell)
        grouped.append(batch)
    return grouped


def _fits(cell: Cell, batch: Sequence[Cell]) -> bool:
    if not batch:
        return True
    if cell.phase != batch[0].phase or cell.name in {one.name for one in batch}:
        return False
    if cell.interruption != batch[0].interruption:
        return False
    if any(one.place.with_error for one in (cell, *batch)):
        return False
    used = Counter(one.place.service for one in batch)
    return used[cell.place.service] < _AT_ONCE[cell.phase][cell.place.service]


class Matrix:
    """Runs cells and keeps their results."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.results = Results()
        self._report = report
        self._tries: Counter[Cell] = Counter()

    async def run(self, cells: Sequence[Cell]) -> Results:
        """Run all cells. Enter it in the main thread."""
        started = time.monotonic()
        left = batches(cells)
        while left and len(self.results.broken) < BROKEN_MAX:
            async with fresh_stack(SETTINGS) as (stack, crowd):
                left = await self.run_on(stack, crowd, left)
                self.results.restarts += stack.restarts
        self.results.not_run = {cell for batch in left for cell in batch}
        self.results.seconds = time.monotonic() - started
        return self.results

    async def run_on(
        self, stack: FaultyStack, crowd: Customers, left: list[list[Cell]]
    ) -> list[list[Cell]]:
        """Run batches on one stack until one breaks the books; returns what is left to run."""
        while left:
            batch, *left = left
            shot = Shot(stack, crowd, batch)
            began = time.monotonic()
            found = await shot.run()
            self._report(_line(shot, len(left), time.monotonic() - began, found))
            self.results.orders += shot.orders
            self.results.unlisted |= reached(stack.failpoints) - set(NAMES)
            if found:
                return self._after_a_breach(batch, found) + left
            self.results.held |= shot.fired
            left += self._again(shot.not_fired)
        return left

    def _again(self, not_fired: Iterable[Cell]) -> list[list[Cell]]:
        """Batches of one cell each, for cells that have not fired too often yet."""
        again = []
        for cell in not_fired:
            self._tries[cell] += 1
            if self._tries[cell] < TRIES_MAX:
                again.append([cell])
            else:
                self.results.never_fired.add(cell)
        return again

    def _after_a_breach(self, batch: list[Cell], found: list[str]) -> list[list[Cell]]:
        if len(batch) == 1:
            self.results.broken[batch[0]] = found
            return []
        return [[cell] for cell in batch]


def _line(shot: Shot, left: int, took_s: float, found: Sequence[str]) -> str:
    cells = "; ".join(f"{'' if c in shot.fired else 'NOT FIRED '}{c}" for c in shot.batch)
    verdict = "broken" if found else "held"
    line = f"{left:4} left  {took_s:5.1f} s  {shot.orders:3} orders  {verdict}  {cells}"
    return "\n      ".join((line, *found[:LISTED_MAX]))


class Shot:
    """One batch: load, faults, healing, and the check of the books."""

    def __init__(self, stack: FaultyStack, crowd: Customers, batch: Sequence[Cell]) -> None:
        self._stack = stack
        self._crowd = crowd
        self.batch = batch
        self._before = len(fired(stack.failpoints))
        self._finished = len(crowd.finished)
        self._orders = crowd.orders
        self._deaths: list[str] = []

    @property
    def _names(self) -> Counter[str]:
        """How often each failpoint has fired in this batch."""
        return Counter(one.name for one in self._records)

    @property
    def _records(self) -> list[Fired]:
        return fired(self._stack.failpoints)[self._before :]

    @property
    def orders(self) -> int:
        return self._crowd.orders - self._orders

    @property
    def fired(self) -> set[Cell]:
        return set(self.batch) - self.not_fired

    @property
    def not_fired(self) -> set[Cell]:
        names = self._names
        return {c for c in self.batch if names[c.name] < 1 + (c.name in self._interruptions)}

    @property
    def replies(self) -> list[Replies]:
        return self._crowd.finished[self._finished :]

    @property
    def _interruptions(self) -> set[str]:
        return {cell.interruption for cell in self.batch} - {""}

    async def run(self) -> list[str]:
        """What is wrong afterwards; nothing if the books hold."""
        async with beside(self._crowd.settle_refunds()):
            async with beside(self._restart()):
                if self._interruptions:
                    await self._interrupt()
                self._arm()
                await self._load(lambda: not self.not_fired, new=not self._interruptions)
                await self._crowd.leave()
                disarm_all(self._stack.failpoints)
                await self._stack.healthy()
            left = await unfinished(self._stack)
        return [
            *self._deaths,
            *left,
            *await wrong(self._stack, self.replies),
            *await self._stack.differences(),
        ]

    def _arm(self) -> None:
        for cell in self.batch:
            if cell.place.with_error:
                error = Armed(cell.place.with_error, Action.ERROR, cell.place.service)
                arm(self._stack.failpoints, error)
            armed = Armed(cell.name, cell.action, cell.place.service, PAUSE_S)
            arm(self._stack.failpoints, armed)

    async def _interrupt(self) -> None:
        """Kill a process where it is about to do what recovery will do for it.

        Its customers go away: what happens afterwards is recovery.
        """
        busy_s = time.monotonic() + BUSY_S
        # Several sagas are to be recovered: one alone cannot survive every fault of a batch.
        await self._load(lambda: time.monotonic() > busy_s, new=True)
        for name in self._interruptions:
            arm(self._stack.failpoints, Armed(name, Action.KILL))
        await self._load(lambda: set(self._names) >= self._interruptions, new=True)
        for customers in self._crowd.rounds:
            customers.cancel()
        await asyncio.sleep(STILL_S)

    async def _load(self, done: Callable[[], bool], *, new: bool) -> None:
        """Send rounds of customers until ``done``, or for FIRE_LIMIT_S.

        Without ``new`` no customer begins: what is interrupted has to suffice.
        """
        until_s = time.monotonic() + FIRE_LIMIT_S
        rounds = self._crowd.rounds
        next_s = time.monotonic()
        while not done() and time.monotonic() < until_s:
            running = sum(not one.done() for one in rounds)
            if new and time.monotonic() >= next_s and running < ROUNDS_MAX:
                shop = self._crowd.shops[len(rounds) % len(self._crowd.shops)]
                rounds.append(asyncio.create_task(self._round(shop)))
                next_s = time.monotonic() + ROUND_S
            await asyncio.sleep(_POLL_S)

    async def _round(self, shop: Shop) -> None:
        await asyncio.gather(self._crowd.round(shop), self._crowd.keep_shop(shop))

    async def _restart(self) -> None:
        """Restart what dies, for ever. Only a failpoint may end a process."""
        while True:
            for child in self._stack.restart_dead():
                killed = {one.pid for one in fired(self._stack.failpoints)}
                if child.pid not in killed:
                    self._deaths.append(f"{child.name} ended by itself: {child.exit_code()}")
            await asyncio.sleep(_POLL_S)
