"""Shares of what clients hold of one bounded thing, so that one client cannot hold all of it.

A client that holds something gets more only up to half of what is free. So a client that is alone
has a third at most, several have less each, and one that holds nothing gets whatever is free.
A fixed share would be too small for the one client that a proxy is, or too large for several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import Overloaded


class Shares:
    """What is held of one thing, in all and by each client."""

    def __init__(self) -> None:
        self._total = 0
        self._held = Counter[str]()

    def has_room(self, client: str, amount: int, most: int) -> bool:
        """Whether the client may take this amount, of ``most`` in all."""
        free, held = most - self._total, self._held[client]
        return amount <= free and (held == 0 or 2 * (held + amount) <= free)

    def take(self, client: str, amount: int) -> None:
        """Count this amount as held by the client."""
        self._total += amount
        self._held[client] += amount

    def give_back(self, client: str, amount: int) -> None:
        """Count it no longer."""
        self._total -= amount
        self._held[client] -= amount
        if self._held[client] <= 0:
            del self._held[client]

    @contextmanager
    def taken(self, client: str, most: int) -> Iterator[None]:
        """Hold one of ``most`` meanwhile. Raises Overloaded if the client may not."""
        if not self.has_room(client, 1, most):
            raise Overloaded
        self.take(client, 1)
        try:
            yield
        finally:
            self.give_back(client, 1)
