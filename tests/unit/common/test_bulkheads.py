"""Bulkheads: their bound, the order of those who wait, and refusals."""

from __future__ import annotations

import asyncio

import pytest

from common.db import bulkheads
from common.db.bulkheads import Bulkhead, Bulkheads
from common.errors import Overloaded


class Guest:
    """A task that is in the bulkhead until the test lets it leave."""

    def __init__(self, bulkhead: Bulkhead) -> None:
        self.inside, self._leave = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._stay(bulkhead))

    async def _stay(self, bulkhead: Bulkhead) -> None:
        async with bulkhead.place():
            self.inside.set()
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_places_are_taken_in_order_of_arrival() -> None:
    bulkhead = Bulkhead("test", 2)
    guests = [Guest(bulkhead) for _ in range(4)]
    for left, inside in enumerate([2, 3, 4, 4]):
        await turns()
        assert [guest.inside.is_set() for guest in guests] == [n < inside for n in range(4)]
        await guests[left].leave()
    assert bulkhead.empty


async def test_a_full_bulkhead_refuses_with_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulkheads, "WAIT_S", 0.01)
    bulkhead = Bulkhead("test", 1, waiting_max=1)
    first = Guest(bulkhead)
    await first.inside.wait()
    waiting = Guest(bulkhead)
    await turns()
    with pytest.raises(Overloaded):
        async with bulkhead.place():
            pass
    with pytest.raises(Overloaded):
        await waiting.task
    await first.leave()
    async with bulkhead.place():
        pass


async def test_cancelled_guests_keep_no_place() -> None:
    """Cancelled while they wait, or in the moment in which a place becomes free for them."""
    bulkhead = Bulkhead("test", 1)
    for rounds in range(4):
        first, second = Guest(bulkhead), Guest(bulkhead)
        await turns()
        first._leave.set()
        for _ in range(rounds):
            await asyncio.sleep(0)
        second.task.cancel()
        await asyncio.gather(first.task, second.task, return_exceptions=True)
        assert bulkhead.empty
        async with bulkhead.place():
            pass


@pytest.mark.parametrize("connections", [1, 2, 5])
async def test_stuck_rows_leave_a_connection_to_others(connections: int) -> None:
    """With one connection they take turns: one of them waits for it at most."""
    made = Bulkheads.of(lanes=connections, waiting=connections)

    async def stay() -> None:
        async with made.for_lock_wait(stuck=True):
            await asyncio.Event().wait()

    stuck = [asyncio.create_task(stay()) for _ in range(12)]
    await turns()
    assert made.stuck.size == max(1, connections - 1)
    if connections > 1:
        async with made.for_job(), made.calls.place():
            pass
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)
    assert made.waiting.empty
