"""Clients that follow tickets. However many they are, a replica asks once a round for all of them:
one call for each queue, and one read of the coupons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from coupon_service.errors import TicketLost, TicketNotFound
from coupon_service.model.ticket import Ticket
from coupon_service.use_cases.ticket import Tickets

MESSAGE_PAUSE_S: Final = 1.0
"""From one message of a stream to the next, at least."""
ROUND_MAX: Final = 1_000
"""Tickets that are read at once: GetTicket waits for the same reads, whose callers are bounded."""


class TicketWatches:
    """The tickets that clients of this replica follow. The server bounds its streams."""

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets
        self._watched: dict[str, _WatchedTicket] = {}

    async def follow(self, ticket_id: str, user_id: str) -> AsyncGenerator[Ticket]:
        """The ticket now, then each time that it has moved, until it is issued or refused.

        Raises TicketNotFound, TicketLost, DatabaseUnavailable or Overloaded.
        """
        ticket = await self._tickets.get(ticket_id, user_id)
        if ticket.final:
            yield ticket
            return
        watched = self._watched.setdefault(ticket_id, _WatchedTicket())
        watched.followers += 1
        try:
            while True:
                yield ticket
                if ticket.final:
                    return
                await asyncio.sleep(MESSAGE_PAUSE_S)
                ticket = await watched.moved_from(ticket)
        finally:
            watched.followers -= 1
            if not watched.followers and self._watched.get(ticket_id) is watched:
                del self._watched[ticket_id]

    async def poll(self) -> None:
        """A round: find what has moved. While the queue cannot be reached, its tickets wait."""
        asked = list(self._watched.items())
        for at in range(0, len(asked), ROUND_MAX):
            part = asked[at : at + ROUND_MAX]
            found = await self._tickets.read([ticket_id for ticket_id, _ in part])
            for (_, watched), ticket in zip(part, found, strict=True):
                if ticket is not None:
                    watched.update(ticket)


class _WatchedTicket:
    """A ticket as it was found last."""

    def __init__(self) -> None:
        self.followers = 0
        self._latest: Ticket | TicketLost | TicketNotFound | None = None
        self._changed = asyncio.Event()

    def update(self, found: Ticket | TicketLost | TicketNotFound) -> None:
        self._latest = found
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def moved_from(self, ticket: Ticket) -> Ticket:
        """The ticket when it is nearer than this, or final. Raises TicketNotFound or TicketLost."""
        while True:
            latest = self._latest
            if isinstance(latest, Exception):
                raise latest
            # A round that began before this was read may have found an earlier place.
            if latest is not None and (latest.final or latest.position < ticket.position):
                return latest
            await self._changed.wait()
