"""How large a workload is, and what its requests are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PROCESSES: Final = 4
SESSIONS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The numbers of a workload. Each experiment says what they count."""

    requests: int
    things: int = 1
    """Rows that the requests want: accounts, campaigns, products, payments or seats."""
    copies: int = 1
    """How often each request is sent."""
    quantity: int = 0
    """What each thing has to give at the start: money, coupons or stock."""
    amount: int = 0
    """What a request adds to an account."""
    work_ms: float = 0.0
    """Time that a transaction takes besides its statements."""
    callers: int = 0
    """Requests of a process at once; 0: all of them."""
    processes: int = PROCESSES
    sessions: int = SESSIONS
    """Of PostgreSQL, in each process."""
    limit_s: float = 30.0
    """After this time a cell ends, finished or not."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``number``: its place in the workload."""

    number: int
    thing: int = 0
    user: int = 0
    other: int = 0
    """A second thing."""
