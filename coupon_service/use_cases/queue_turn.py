"""One turn at a queue: read its first tickets, issue their coupons in order, finish them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import structlog
from prometheus_client import Counter, Histogram

from common.db.errors import Fault, classify, sqlstate
from common.errors import Internal, Refusal
from common.metrics import REGISTRY, from_zero
from coupon_service.model.ticket import Decision, IssueTickets, Superseded, time_of
from coupon_service.store.queue import Queues
from coupon_service.store.queue_entries import Entry, Finished, Head, IssuedBefore, Refused
from coupon_service.use_cases.ticket_decider import TicketLane

TICKETS_MAX: Final = 256
"""Tickets of one queue in one transaction."""
SIZE_DIVISOR: Final = 16
"""How many times fewer tickets are read after a turn that failed: after two, one ticket."""
FAILURES_ALONE_MIN: Final = 4
"""Turns in a row that fail before a ticket, read alone by then, is refused for a defect."""

_decided: Final = Counter(
    "tally_queue_tickets",
    "Tickets that left a queue, by outcome: issued, replayed (the coupon was issued before), "
    "refused or unreadable.",
    ("outcome",),
    registry=REGISTRY,
)
from_zero(_decided, ("issued", "replayed", "refused", "unreadable"))
_lag: Final = Histogram(
    "tally_queue_lag_seconds",
    "How long the first ticket of a batch had been waiting when the batch was read, in seconds.",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
    registry=REGISTRY,
)
_superseded: Final = Counter(
    "tally_queue_superseded",
    "Batches that a consumer was not allowed to write: a later one had a higher fence.",
    registry=REGISTRY,
)
_log = structlog.stdlib.get_logger()


class ConsumerSuperseded(Exception):  # noqa: N818 - a state, not a fault
    """A consumer with a higher fence has decided tickets of the campaign: this one may not."""


class QueueTurns:
    """The turns of one consumer at one queue."""

    def __init__(self, queue: str, queues: Queues, lane: TicketLane, fence: int) -> None:
        """``fence``: of the consumer's lock."""
        self.queue = queue
        self.failures = 0
        """Turns in a row that have failed."""
        self._queues = queues
        self._lane = lane
        self._fence = fence
        self._size = TICKETS_MAX

    def failed(self) -> None:
        """Read fewer tickets next time: a smaller batch may be fast enough, or without fault."""
        self.failures += 1
        self._size = max(1, self._size // SIZE_DIVISOR)

    def succeeded(self) -> None:
        """Read more tickets next time, up to TICKETS_MAX."""
        self.failures = 0
        self._size = min(TICKETS_MAX, 2 * self._size)

    async def read(self) -> Head:
        """The first tickets of the queue. Raises RedisUnavailable."""
        head = await self._queues.read(self.queue, self._size)
        if head.entries:
            _lag.observe(head.age_s)
        return head

    async def decide(self, head: Head) -> None:
        """Decide these tickets and finish them; an empty queue leaves the active ones.

        It can be repeated from the read on: what is committed is replayed, and what is finished is
        not read again. Raises ConsumerSuperseded; or RedisUnavailable, a Refusal, or what the
        database raises, if it has to be repeated.
        """
        if not head.entries:
            await self._queues.finish(self.queue, ())
        # Campaigns that share a queue are decided apart.
        for campaign_id, group in groupby(head.entries, _campaign_of):
            entries = list(group)
            if campaign_id is None:
                finished = [_passed_over(self.queue, entry) for entry in entries]
            else:
                finished = await self._issue(campaign_id, entries)
            await self._queues.finish(self.queue, finished)
            for one in finished:
                _decided.labels(_outcome_of(one)).inc()

    async def _issue(self, campaign_id: str, entries: Sequence[Entry]) -> list[Finished]:
        try:
            return await self._issue_together(campaign_id, entries)
        except ConsumerSuperseded:
            raise
        except Exception as error:
            if not self._concerns_a_ticket(error, entries):
                raise
            if len(entries) == 1:
                return [_refused_by(error, entries[0])]
            # In halves, and still in their order.
            half = len(entries) // 2
            first = await self._issue(campaign_id, entries[:half])
            return first + await self._issue(campaign_id, entries[half:])

    async def _issue_together(self, campaign_id: str, entries: Sequence[Entry]) -> list[Finished]:
        tickets = tuple(entry.ticket for entry in entries if entry.ticket is not None)
        decided = await self._lane.submit(IssueTickets(campaign_id, self._fence, tickets))
        if isinstance(decided, Superseded):
            _superseded.inc()
            _log.warning("queue_consumer_superseded", campaign_id=campaign_id, fence=self._fence)
            raise ConsumerSuperseded
        return list(map(_finished, entries, decided))

    def _concerns_a_ticket(self, error: Exception, entries: Sequence[Entry]) -> bool:
        """Whether one of the tickets is the cause: without it, the others can be issued."""
        if isinstance(error, Internal):
            # The lane lost the batch, which may be committed: repeated, its records replay it.
            return False
        if isinstance(error, Refusal):
            return error.retry_after_s is None
        fault = classify(error)
        if fault is Fault.UNEXPECTED:
            # A defect that one ticket alone meets each time would stop its queue for ever. What
            # the server raises (no table, no permission) would meet every ticket.
            alone = len(entries) == 1 and self.failures >= FAILURES_ALONE_MIN
            return alone and not sqlstate(error)
        return fault in {Fault.COMMAND, Fault.TAKEN}


def _campaign_of(entry: Entry) -> str | None:
    return None if entry.ticket is None else entry.ticket.request.campaign_id


def _passed_over(queue: str, entry: Entry) -> Finished:
    _log.error("queue_entry_unreadable", queue=queue, entry=entry.entry_id)
    return Finished(entry)


def _refused_by(error: Exception, entry: Entry) -> Finished:
    """The entry, whose ticket cannot be issued for this error."""
    assert entry.ticket is not None
    ticket_id = entry.ticket.ticket_id
    reason = error.reason if isinstance(error, Refusal) else Internal.reason
    _log.error("ticket_not_issued", ticket_id=ticket_id, exc_info=error)
    # Its transaction was rolled back, and has told no time: that of queueing is the latest known.
    return Finished(entry, Refused(reason, time_of(ticket_id)))


def _finished(entry: Entry, decision: Decision) -> Finished:
    outcome = decision.outcome
    if isinstance(outcome, Refusal):
        return Finished(entry, Refused(outcome.reason, decision.time))
    assert entry.ticket is not None
    assert outcome.ticket_id is not None, "issued by ticket"
    if outcome.ticket_id == entry.ticket.ticket_id:
        return Finished(entry)
    return Finished(entry, IssuedBefore(outcome.ticket_id))


def _outcome_of(finished: Finished) -> str:
    """A label of ``tally_queue_tickets_total``."""
    if isinstance(finished.final, Refused):
        return "refused"
    if isinstance(finished.final, IssuedBefore):
        return "replayed"
    return "unreadable" if finished.entry.ticket is None else "issued"
