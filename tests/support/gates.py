"""Calls of a saga's steps that wait for the test."""

from __future__ import annotations

import asyncio


class Gate:
    """One call stops here until the test opens the gate."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def reached(self) -> None:
        """Wait until the call is here, before it is made."""
        await self._reached.wait()

    def open(self) -> None:
        self._opened.set()

    async def pass_through(self) -> None:
        self._reached.set()
        await self._opened.wait()


class Gates:
    """A gate for the next call of each held step."""

    def __init__(self) -> None:
        self._gates: dict[str, Gate] = {}

    def hold(self, step: str) -> Gate:
        """Hold the next call of the step, and no later one."""
        gate = self._gates[step] = Gate()
        return gate

    async def pass_through(self, step: str) -> None:
        if (gate := self._gates.pop(step, None)) is not None:
            await gate.pass_through()

    def open_all(self) -> None:
        for gate in self._gates.values():
            gate.open()
        self._gates.clear()
