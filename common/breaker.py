"""A circuit breaker: after several failures in a row, calls fail at once for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from purgatory.domain.model import HALF_OPENED, Context, OpenedState


class CircuitOpen(Exception):  # noqa: N818 - a state, not a fault
    """The circuit is open, or one other call is its trial: this call was not made."""


class CircuitBreaker:
    """Counts failures in a row of calls to one place.

    After ``failures_max`` failures the circuit is open for ``open_s`` seconds. Then one call at a
    time is a trial: a success closes the circuit, a failure opens it again. A cancelled call is
    neither: it says nothing about the place that was called.
    """

    def __init__(self, name: str, *, failures_max: int, open_s: float) -> None:
        self.name = name
        self._circuit = Context(name, failures_max, open_s)
        self._in_trial = False

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """A block that counts as a failure if it raises. Raises CircuitOpen before entering it."""
        circuit = self._circuit
        if circuit.state == HALF_OPENED and self._in_trial:
            # The library alone would let every call through.
            raise CircuitOpen("circuit half-open")
        try:
            circuit.handle_new_request()
        except OpenedState as opened:
            # The library raises one shared exception: its traceback would grow with every call.
            opened.__traceback__ = None
            raise CircuitOpen("circuit open") from None
        trial = circuit.state == HALF_OPENED
        self._in_trial = self._in_trial or trial
        try:
            yield
        except Exception as error:
            circuit.handle_exception(error)
            raise
        else:
            circuit.handle_end_request()
        finally:
            if trial:
                self._in_trial = False
            # For the library's listeners; there are none.
            circuit.messages.clear()
