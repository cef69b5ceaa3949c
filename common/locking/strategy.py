"""The vocabulary of each service's ``locking.py``: how an operation is kept from meeting itself.

Three lines of defence, in this order. The last alone must keep the books right:

1. a Redis lock orders the contenders of all replicas; it may be absent, late or wrong;
2. a row strategy in PostgreSQL decides who is first;
3. a constraint refuses what should never have come that far.

The lane reads the Redis key and the number of rounds from the strategy, and refuses a command
without one (``common.batching.lane``).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class RowStrategy(enum.Enum):
    """The second line: what a transaction does about the rows it changes."""

    FOR_UPDATE = "row locks, taken in ascending id order"
    VERSION = "row version compared at the write"
    CONDITIONAL_UPDATE = "UPDATE … WHERE state = expected"
    INSERT = "nothing to lock: a new row under a unique key"


@dataclass(frozen=True, slots=True)
class Strategy:
    """How one operation is kept from meeting itself."""

    redis_key: str | None
    """Template of the first line's key, with the command's attributes in braces; None where
    contenders need no order."""
    rows: RowStrategy
    rounds_max: int
    """How often the operation is decided when other writers change its rows first; then it is
    refused with CONFLICT_RETRIES_EXHAUSTED."""
    guards: tuple[str, ...]
    """Names of the constraints that hold when the other lines are gone."""
    why: str

    def key_of(self, command: object) -> str | None:
        """The command's Redis key."""
        if self.redis_key is None:
            return None
        return self.redis_key.replace("{", "{0.").format(command)


Strategies = Mapping[type, Strategy]
"""One strategy for each command type of a service."""
