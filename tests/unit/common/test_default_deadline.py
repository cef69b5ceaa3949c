"""The time limit of calls whose clients set none: one timer for all of them."""

from __future__ import annotations

import asyncio

import pytest

from common.rpc.default_deadline import DefaultDeadline


class Held:
    """A call that waits until it is cancelled, and then ``reluctant`` more times."""

    def __init__(self, reluctant: int = 0) -> None:
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self.cancelled = 0
        self._reluctant = reluctant

    async def __call__(self) -> str:
        self.begun.set()
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                self.ended.set()
                if self.cancelled > self._reluctant:
                    raise


async def test_a_call_is_ended_and_its_task_is_as_before() -> None:
    held = Held()
    with pytest.raises(TimeoutError):
        await DefaultDeadline(0.01).within(held())
    assert held.cancelled == 1
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_each_call_has_its_own_time() -> None:
    """The first ends before its time; the timer that was set for it ends no other."""
    deadline = DefaultDeadline(0.05)
    loop = asyncio.get_running_loop()

    async def ended_after() -> float:
        begun = loop.time()
        with pytest.raises(TimeoutError):
            await deadline.within(Held()())
        return loop.time() - begun

    async def quick() -> str:
        return "done"

    assert await deadline.within(quick()) == "done"
    await asyncio.sleep(0.02)
    first = asyncio.ensure_future(ended_after())
    await asyncio.sleep(0.02)
    second = asyncio.ensure_future(ended_after())
    assert min(await asyncio.gather(first, second)) >= 0.04
    assert await deadline.within(quick()) == "done"


@pytest.mark.parametrize(("limit_s", "reluctant"), [(60.0, 0), (0.01, 1)], ids=["before", "after"])
async def test_a_client_that_hangs_up_is_no_timeout(limit_s: float, reluctant: int) -> None:
    held = Held(reluctant)
    task = asyncio.ensure_future(DefaultDeadline(limit_s).within(held()))
    await (held.ended if reluctant else held.begun).wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
