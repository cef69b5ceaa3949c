"""One turn at a queue: read its first tickets, issue their coupons in order, finish them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

import structlog
from prometheus_client import Counter, Histogram

from common.db.errors import Fault, classify
from common.errors import Internal, Refusal
from common.metrics import REGISTRY
from coupon_service.model.ticket import Decision, IssueTickets, Superseded, time_of
from coupon_service.store.queue import Queues
from coupon_service.store.queue_entries import Entry, Finished, Head, IssuedBefore, Refused
from coupon_service.use_cases.ticket_decider import TicketLane

TICKETS_MAX: Final = 256
"""Tickets of one queue in one transaction."""

_decided: Final = Counter(
    "tally_queue_tickets",
    "Tickets that left a queue, by outcome: issued, replayed (the coupon was issued before), "
    "refused or unreadable.",
    ("outcome",),
    registry=REGISTRY,
)
_lag: Final = Histogram(
    "tally_queue_lag_seconds",
    "How long the first ticket of a batch had been waiting when the batch was read, in seconds.",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
    registry=REGISTRY,
)
_superseded: Final = Counter(
    "tally_queue_superseded",
    "Batches that a consumer was not allowed to write, since another one had followed it.",
    registry=REGISTRY,
)
_log = structlog.stdlib.get_logger()


class ConsumerSuperseded(Exception):  # noqa: N818 - a state, not a fault
    """Another consumer has followed this one, which may decide nothing any more."""


class QueueTurns:
    """The turns of one consumer."""

    def __init__(self, queues: Queues, lane: TicketLane, fence: int) -> None:
        """``fence``: of the consumer's lock."""
        self._queues = queues
        self._lane = lane
        self._fence = fence

    async def read(self, queue: str) -> Head:
        """The first tickets of the queue. Raises RedisUnavailable."""
        head = await self._queues.read(queue, TICKETS_MAX)
        if head.entries:
            _lag.observe(head.age_s)
        return head

    async def decide(self, queue: str, head: Head) -> None:
        """Decide these tickets and finish them; an empty queue leaves the active ones.

        It can be repeated from the read on: what is committed is replayed, and what is finished is
        not read again. Raises ConsumerSuperseded; or RedisUnavailable, a Refusal, or what the
        database raises, if it has to be repeated.
        """
        if not head.entries:
            await self._queues.finish(queue, ())
        # Campaigns that share a queue are decided apart.
        for campaign_id, group in groupby(head.entries, _campaign_of):
            entries = list(group)
            if campaign_id is None:
                finished = [_passed_over(queue, entry) for entry in entries]
            else:
                finished = await self._issue(campaign_id, entries)
            await self._queues.finish(queue, finished)

    async def _issue(self, campaign_id: str, entries: Sequence[Entry]) -> list[Finished]:
        tickets = tuple(entry.ticket for entry in entries if entry.ticket is not None)
        try:
            decided = await self._lane.submit(IssueTickets(campaign_id, self._fence, tickets))
        except Exception as error:
            if not _concerns_a_ticket(error):
                raise
            if len(entries) == 1:
                reason = error.reason if isinstance(error, Refusal) else Internal.reason
                _log.error("ticket_not_issued", ticket_id=tickets[0].ticket_id, exc_info=error)
                return [_refused(entries[0], Refused(reason, time_of(tickets[0].ticket_id)))]
            # In halves, and still in their order.
            half = len(entries) // 2
            first = await self._issue(campaign_id, entries[:half])
            return first + await self._issue(campaign_id, entries[half:])
        if isinstance(decided, Superseded):
            _superseded.inc()
            _log.warning("queue_consumer_superseded", campaign_id=campaign_id, fence=self._fence)
            raise ConsumerSuperseded
        return list(map(_finished, entries, decided))


def _campaign_of(entry: Entry) -> str | None:
    return None if entry.ticket is None else entry.ticket.request.campaign_id


def _concerns_a_ticket(error: Exception) -> bool:
    """Whether one of the tickets is the cause: without it, the others can be issued."""
    if isinstance(error, Refusal):
        return error.retry_after_s is None
    return classify(error) in {Fault.COMMAND, Fault.TAKEN}


def _passed_over(queue: str, entry: Entry) -> Finished:
    _decided.labels("unreadable").inc()
    _log.error("queue_entry_unreadable", queue=queue, entry=entry.entry_id)
    return Finished(entry)


def _finished(entry: Entry, decision: Decision) -> Finished:
    outcome = decision.outcome
    if isinstance(outcome, Refusal):
        return _refused(entry, Refused(outcome.reason, decision.time))
    assert entry.ticket is not None
    assert outcome.ticket_id is not None, "issued by ticket"
    if outcome.ticket_id == entry.ticket.ticket_id:
        _decided.labels("issued").inc()
        return Finished(entry)
    _decided.labels("replayed").inc()
    return Finished(entry, IssuedBefore(outcome.ticket_id))


def _refused(entry: Entry, refused: Refused) -> Finished:
    _decided.labels("refused").inc()
    return Finished(entry, refused)
