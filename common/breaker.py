"""A circuit breaker: after several failures in a row, calls fail at once for a while.

No library is behind it. The one used before (purgatory) measures the pause on the wall clock,
so that a clock set back an hour keeps the circuit open for an hour; it raises one shared exception,
whose traceback grows with every call; and it lets every call through as a trial.
"""

from __future__ import annotations

import time
import weakref
from types import TracebackType
from typing import Final

import structlog
from prometheus_client import Gauge

from common.metrics import REGISTRY

ERROR_CHARS_MAX: Final = 200
"""Of an error in a log line."""

_open = Gauge(
    "tally_circuit_open",
    "Circuits that refuse calls now, since their place failed several times in a row, by name.",
    ("circuit",),
    registry=REGISTRY,
)
_circuits: dict[str, list[weakref.ref[CircuitBreaker]]] = {}
"""By their names. A process may have several of one name, such as one for each node of Redlock."""
_log = structlog.stdlib.get_logger()


class CircuitOpen(Exception):  # noqa: N818 - a state, not a fault
    """The circuit is open, or one other call is its trial: this call was not made."""


class CircuitBreaker:
    """Counts failures in a row of calls to one place.

    After ``failures_max`` failures the circuit is open for ``open_s`` seconds. Then one call at a
    time is a trial: a success closes the circuit, a failure opens it again. A cancelled call is
    neither: it says nothing about the place that was called. Calls that were made before the
    circuit opened change nothing when they end.
    """

    def __init__(self, name: str, *, failures_max: int, open_s: float) -> None:
        """``name``: the place and, if only some calls of it count, the operation; for the log."""
        self.name = name
        self._failures_max = failures_max
        self._open_s = open_s
        self._failures = 0
        self._opened_s: float | None = None
        """The monotonic time at which the circuit opened; None while it is closed."""
        self._in_trial = False
        circuits = _circuits.setdefault(name, [])
        circuits.append(weakref.ref(self))
        _open.labels(name).set_function(lambda: _refusing(circuits))

    @property
    def refuses(self) -> bool:
        """Whether a call would be refused now."""
        if self._opened_s is None:
            return False
        return self._in_trial or time.monotonic() - self._opened_s < self._open_s

    def call(self) -> _Call:
        """A block that counts as a failure if it raises. Raises CircuitOpen before entering it."""
        return _Call(self)

    def begin(self) -> bool:
        """Whether the call that begins now is a trial. Raises CircuitOpen. For ``_Call``."""
        if self.refuses:
            raise CircuitOpen("circuit half-open" if self._in_trial else "circuit open")
        self._in_trial = self._opened_s is not None
        return self._in_trial

    def end(self, error: BaseException | None, *, trial: bool) -> None:
        """Note the outcome of a call. For ``_Call``."""
        if isinstance(error, Exception):
            self._failed(error, trial=trial)
        elif error is None and (trial or self._opened_s is None):
            if self._opened_s is not None:
                _log.info("circuit_closed", circuit=self.name)
            self._failures, self._opened_s = 0, None
        if trial:
            self._in_trial = False

    def _failed(self, error: Exception, *, trial: bool) -> None:
        if self._opened_s is None:
            self._failures += 1
            if self._failures == self._failures_max:
                # Once until it closes: a trial that fails changes nothing.
                _log.warning(
                    "circuit_opened",
                    circuit=self.name,
                    failures=self._failures,
                    open_s=self._open_s,
                    error=repr(error)[:ERROR_CHARS_MAX],
                )
        if trial or (self._opened_s is None and self._failures >= self._failures_max):
            self._opened_s = time.monotonic()


def _refusing(circuits: list[weakref.ref[CircuitBreaker]]) -> int:
    return sum(1 for one in circuits if (circuit := one()) is not None and circuit.refuses)


class _Call:
    """One call, as a class: a generator's context manager costs several times as much."""

    __slots__ = ("_breaker", "_trial")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._trial = False

    async def __aenter__(self) -> None:
        self._trial = self._breaker.begin()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._breaker.end(error, trial=self._trial)
