"""Questions at the gateway about payments that Tally regards as settled.

People refund in the gateway's own dashboard, and the gateway does not report that. A payment that
counts as never charged (NOT_CHARGED) may turn out to be charged: then it is given back.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from common.db.database import Database
from common.db.errors import failure_of
from common.db.repeat import in_transaction
from payment_service.gateway.outcomes import Unknown, Untouched
from payment_service.model.confirmation import Confirmation
from payment_service.store import recheck as store
from payment_service.use_cases.resolver import Resolver

CONCURRENCY_MAX: Final = 8
"""Payments that a replica asks about at once, and not more than the resolver has free slots."""
RUN_MAX: Final = 600
"""Payments of one run, so that the checks of a backlog are at most ten in a second."""
INTERVAL_S: Final = 60.0
"""Time between two runs of a replica. All replicas share the work."""

_log = structlog.stdlib.get_logger()


class Recheck:
    """Asks the gateway about settled payments, until they are some days old."""

    def __init__(
        self, database: Database, resolver: Resolver, *, days: int, confirm_window_s: float
    ) -> None:
        """``days``: for how long after its last change a payment is asked about; 0: charges never.

        A payment that counts as not charged is asked about at least until its key cannot be
        confirmed any more, ``confirm_window_s`` after its last confirm.
        """
        self._database = database
        self._resolver = resolver
        self._age_max = timedelta(days=days)
        self._confirm_window = timedelta(seconds=confirm_window_s)

    async def run(self, stopping: asyncio.Event) -> int:
        """Ask about payments that are due, about RUN_MAX at most; returns the number of answers.

        Ends when the gateway does not answer: what was claimed is due again after some minutes. So
        is a payment whose check failed, which stops no other. Raises DatabaseUnavailable or
        Overloaded if no payments can be claimed.
        """
        checked = 0
        while checked < RUN_MAX and not stopping.is_set():
            size = min(CONCURRENCY_MAX, self._resolver.slots_free)
            if size <= 0:
                break
            due, more = await in_transaction(
                self._database, "payment_recheck", partial(store.claim_due, size=size)
            )
            answers = await asyncio.gather(*(self._check_safely(claimed) for claimed in due))
            checked += sum(answers)
            if not more or not all(answers):
                break
        return checked

    async def _check_safely(self, claimed: Confirmation) -> bool:
        """As ``_check``; a payment whose check failed is left until it is due again."""
        try:
            return await self._check(claimed)
        except Exception as error:  # noqa: BLE001 - the other payments are checked all the same
            payment_id = claimed.payment.payment_id
            _log.warning("recheck_failed", payment_id=payment_id, error=failure_of(error))
            return True

    async def _check(self, claimed: Confirmation) -> bool:
        """Ask about one payment; returns whether the gateway answered."""
        now = store.claimed_at(claimed)
        next_time = claimed.next_check(now)
        useful = next_time is not None and (self._age_max or claimed.settled_as_not_charged)
        if useful:
            found = await self._resolver.look_up(claimed)
            if isinstance(found, Untouched | Unknown):
                return False
        if not useful or now >= claimed.check_until(self._age_max, self._confirm_window):
            next_time = None
        await in_transaction(
            self._database,
            "payment_recheck",
            lambda connection: store.mark_checked(connection, claimed, next_time),
            idempotent=True,
        )
        return True
