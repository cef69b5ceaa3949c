"""Waits for what another task, thread or process brings about. ``payments.until`` reads a service.

A server writes log lines, metrics and spans after its client has the reply: what a test reads there
it waits for, by one of these. A turn of the event loop, ``sleep(0)``, is no such wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.support.time_limits import LONG_S


async def until_true(condition: Callable[[], object]) -> None:
    """Return when ``condition`` is true. Raises TimeoutError after ``LONG_S`` seconds."""
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.002)
