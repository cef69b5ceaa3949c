"""The services that sagas call: which of them are away, as this replica has seen it.

While a service is away, its sagas wait in their rows. One of them goes on as a probe; when it gets
a reply, the others are due again (``Runner``).
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from common.errors import Refusal
from order_service.clients import is_away

FAILURES_MAX: Final = 5
"""Calls in a row without a reply, after which a service counts as away."""


class Peers:
    """The replies of the participants of sagas to one replica."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()
        self._back: set[str] = set()

    def note(self, participant: str, reply: object) -> None:
        """Note the reply to a call, or the refusal that came instead."""
        if isinstance(reply, Refusal) and is_away(reply):
            self._failures[participant] += 1
            return
        if self._failures.pop(participant, 0) >= FAILURES_MAX:
            self._back.add(participant)

    @property
    def away(self) -> list[str]:
        """The participants that are away."""
        return sorted(name for name, count in self._failures.items() if count >= FAILURES_MAX)

    def take_back(self) -> set[str]:
        """The participants that replied again since the last call."""
        back, self._back = self._back, set()
        return back
