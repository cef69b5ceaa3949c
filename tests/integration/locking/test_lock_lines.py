"""Lines of callers: they let other processes have their turn, and believe only what is current."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from common.locking.key_line import Waiting
from common.locking.key_locks import open_key_locks
from common.locking.key_scripts import TURNS_MAX
from deploy.local.valkey import ValkeyServer
from tests.support.time_limits import LONG_S


@pytest.mark.parametrize("waiting", [Waiting.SPIN, Waiting.HANDOFF])
async def test_callers_that_come_back_at_once_leave_turns_to_others(
    valkey_server: ValkeyServer, key: str, slow_machine: None, waiting: Waiting
) -> None:
    """HANDOFF without a channel behaves as SPIN does."""
    served: list[int] = []

    async def work(replica: int) -> None:
        for _ in range(TURNS_MAX):
            async with replicas[replica].hold([key], wait_s=LONG_S, required=True):
                served.append(replica)

    async with AsyncExitStack() as exits:
        replicas = [
            await exits.enter_async_context(
                open_key_locks(valkey_server.url, "test", waiting=waiting)
            )
            for _ in range(2)
        ]
        for locks in replicas:
            locks.listen(None)
        await asyncio.gather(*(work(replica) for replica in [0, 1] * TURNS_MAX))
    half = Counter(served[: len(served) // 2])
    assert min(half[0], half[1]) >= 2 * TURNS_MAX
