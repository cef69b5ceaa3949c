"""Where alerts are drilled: what Prometheus watches, and the runbooks that are followed there."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

from tests.monitoring.runbooks import Runbooks
from tests.support.prometheus import PrometheusClient

LIMIT_S: Final = 180.0
POLL_S: Final = 0.5

S = TypeVar("S", bound="Scene")
Fault: TypeAlias = Callable[[S], AbstractAsyncContextManager[Any]]
"""Makes a fault that lasts as long as its block."""


@dataclass(kw_only=True)
class Scene:
    """What Prometheus watches."""

    prometheus: PrometheusClient
    runbooks: Runbooks
    filled_in: dict[str, str] = field(default_factory=dict)
    """What is put in the place of each <…> of the pages' commands."""

    async def until(self, reached: Callable[[set[str]], bool]) -> set[str]:
        """Wait until the alerts that fire are such; those that fire then."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            firing = await asyncio.to_thread(self.prometheus.firing)
            if reached(firing) or time.monotonic() > deadline:
                return firing
            await asyncio.sleep(POLL_S)

    async def until_holds(self, expression: str) -> bool:
        """Wait until the expression has a series; whether it has one at last."""
        deadline = time.monotonic() + LIMIT_S
        while not (found := await asyncio.to_thread(self.prometheus.now, expression)):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_S)
        return bool(found)


async def drill(scene: S, fault: Fault[S], alerts: Mapping[str, str]) -> None:
    """Make the fault: the alerts fire, their pages show it, and they resolve after its end.

    ``alerts``: for each what its page's commands and queries print then, as a regular expression.
    """
    names = set(alerts)
    # An earlier fault may have made one of them fire.
    assert names & await scene.until(names.isdisjoint) == set()
    async with fault(scene):
        assert names - await scene.until(names.issubset) == set()
        for alert, sign in alerts.items():
            printed = await scene.runbooks.until_shown(alert, sign, scene.filled_in)
            assert re.search(sign, printed, re.MULTILINE), f"the page of {alert} prints:\n{printed}"
    assert names & await scene.until(names.isdisjoint) == set()
