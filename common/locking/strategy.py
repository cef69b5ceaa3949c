"""The terms of each service's ``locking.py``: what excludes concurrent executions of an operation.

Three lines of defence, in this order. The last alone must keep the books right:

1. a Redis lock orders the contenders of all replicas; it may be absent, late or wrong;
2. a row strategy in PostgreSQL decides who is first;
3. a constraint refuses what the first two lines have let through by mistake.

The lane reads the Redis key and the number of rounds from the strategy, and refuses a command
without one (``common.batching.lane``).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final


class RowStrategy(enum.Enum):
    """The second line: what a transaction does about the rows it changes."""

    FOR_UPDATE = "row locks, taken in ascending id order"
    VERSION = "no row locks before the write, which compares the row version"
    CONDITIONAL_UPDATE = "row locks, and a write that compares what was read: state, version, epoch"
    INSERT = "nothing to lock: a new row under a unique key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """What excludes two concurrent executions of one operation."""

    rows: RowStrategy
    guards: tuple[str, ...]
    """Names of the constraints that hold when the other lines are gone."""
    why: str
    redis_key: str | None = None
    """Template of the Redis lock's key, with the command's attributes in braces; None where
    contenders need no order."""
    redis_key_of_each: tuple[str, str] | None = None
    """Of a command that locks several things: its attribute that lists them, and the template of
    the key of each. The command takes all of its keys, or holds none."""
    many: str | None = None
    """The attribute of a command that lists what it writes, if the list may be long."""
    new_row: str | None = None
    """Template that names the row which the command inserts, if others with the same Redis key
    insert other rows: only commands for this row wait while somebody else's is not committed."""
    mark: str | None = None
    """Template of an in-progress mark's key; a mark is a hint, not a lock."""
    rounds_max: int = 1
    """How often the operation is decided if the version of its row changes each time; then it is
    refused with CONFLICT_RETRIES_EXHAUSTED. Operations that lock their rows have one round."""

    def keys_of(self, command: object) -> tuple[str, ...]:
        """The keys of the command's Redis locks."""
        key = _format(self.redis_key, command)
        keys = () if key is None else (key,)
        if self.redis_key_of_each is None:
            return keys
        name, template = self.redis_key_of_each
        things: Iterable[object] = getattr(command, name)
        return (*keys, *(key for thing in things if (key := _format(template, thing))))

    def weight_of(self, command: object) -> int:
        """The length of that list, or 1; a batch has a largest (``common.batching.queues``)."""
        return 1 if self.many is None else max(1, len(getattr(command, self.many)))

    def new_row_of(self, command: object) -> str | None:
        """The name of the row that the command inserts; None: its first key stands for it."""
        return _format(self.new_row, command)

    def mark_of(self, command: object) -> str | None:
        """The key of the command's mark."""
        return _format(self.mark, command)


_NAME: Final = re.compile(r"\{(\w+)\}")


def _format(template: str | None, command: object) -> str | None:
    return None if template is None else _positional(template).format(command)


@lru_cache
def _positional(template: str) -> str:
    """The template with attributes of the first argument; ``{{`` stays, as for a hash tag."""
    return _NAME.sub(r"{0.\1}", template)


Strategies = Mapping[type, Strategy]
"""One strategy for each command type of a service."""
