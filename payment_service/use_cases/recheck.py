"""A daily question at the gateway about payments that Tally regards as settled.

People refund in the gateway's own dashboard, which does not tell Tally. And a payment that counts
as never charged (NOT_CHARGED) may turn out to be charged: then it is given back.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

from common.db.engines import Database
from payment_service.gateway.outcomes import NotSent, Rejected, Unknown
from payment_service.store import recheck as store
from payment_service.use_cases.resolver import Resolver

BATCH_MAX: Final = 50
"""Payments of one run: the gateway is asked about one after the other."""
INTERVAL_S: Final = 60.0
"""Time between two runs of a replica. All replicas share the work."""


class Recheck:
    """Asks the gateway about settled payments, once a day until they are some days old."""

    def __init__(self, database: Database, resolver: Resolver, *, days: int) -> None:
        self._database = database
        self._resolver = resolver
        self._age_max = timedelta(days=days)

    async def run(self, stopping: asyncio.Event) -> int:
        """Ask about the payments that are due, one batch; returns how many answers there were.

        Ends when the gateway does not answer: the others are due again after some minutes.
        """
        async with self._database.begin("payment_recheck") as connection:
            due = await store.claim_due(connection, age_max=self._age_max, size=BATCH_MAX)
        for number, confirmation in enumerate(due):
            if stopping.is_set():
                return number
            found = await self._resolver.look_up(confirmation)
            if isinstance(found, NotSent | Rejected | Unknown):
                return number
            async with self._database.begin("payment_recheck") as connection:
                payment_id = confirmation.payment.payment_id
                await store.mark_checked(connection, payment_id, age_max=self._age_max)
        return len(due)
