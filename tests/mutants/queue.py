"""Planted bugs of the queues of tickets."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

_RACES: Final = "tests/concurrency/coupon/test_queue.py::"
_TICKETS: Final = "tests/integration/coupon/test_queue.py::"
_FAULTS: Final = "tests/integration/coupon/test_queue_faults.py::"
_FAILURES: Final = "tests/integration/coupon/test_queue_failures.py::"
_QUEUES: Final = "tests/integration/coupon/test_queues.py::"
_SUPERSEDED: Final = f"{_RACES}test_a_superseded_consumer_issues_nothing_any_more"
_NOT_ITS_OWN: Final = f"{_FAILURES}test_no_ticket_is_refused_for_a_fault_that_is_not_its_own"

QUEUE: Final = (
    Mutant(
        "late-consumer-issues",
        "a consumer that a later one has superseded goes on issuing",
        file="coupon_service/model/ticket.py",
        old="        if fence < self.queue_fence:\n",
        new="        if fence < 0:\n",
        tests=(_SUPERSEDED,),
    ),
    Mutant(
        "fence-not-in-the-statement",
        "what a campaign counts is written whatever fence a later consumer has written",
        file="coupon_service/store/ticket.py",
        old="    .where(campaigns.c.queue_fence <= _counted.c.queue_fence)\n",
        new="",
        tests=(_SUPERSEDED,),
    ),
    Mutant(
        "fence-with-coupons-only",
        "a consumer that refuses every ticket leaves the fence of the one before it",
        file="coupon_service/use_cases/ticket_decider.py",
        old="list(batch.changed.values())",
        new="list(batch.changed.values()) if batch.new else []",
        tests=(_SUPERSEDED,),
    ),
    Mutant(
        "direct-calls-overtake",
        "IssueCoupon issues coupons of a campaign that issues only by ticket",
        file="coupon_service/model/campaign.py",
        old="        if self.queue_only:\n            raise CampaignQueued",
        new="        if self.queue_only and self.issued > 0:\n            raise CampaignQueued",
        tests=(f"{_RACES}test_only_tickets_are_issued_where_the_campaign_is_queue_only",),
    ),
    Mutant(
        "ticket-replayed-to-a-direct-call",
        "IssueCoupon replays a coupon that QueueCoupon issued under the same request_id",
        file="coupon_service/use_cases/issue.py",
        old="    if coupon.request_id != command.request_id or coupon.ticket_id is not None:\n",
        new="    if coupon.request_id != command.request_id:\n",
        tests=(f"{_TICKETS}test_one_request_id_of_both_methods_is_two_requests",),
    ),
    Mutant(
        "two-waiting-tickets",
        "a user can have several waiting tickets of one campaign",
        file="coupon_service/store/queue_scripts.py",
        old="if sequence and tonumber(sequence) > finished then\n    --",
        new="if sequence and tonumber(sequence) < finished then\n    --",
        tests=(f"{_TICKETS}test_a_waiting_ticket_is_returned_again_whatever_the_request_id",),
    ),
    Mutant(
        "queue-one-too-long",
        "a queue takes one ticket more than it may have",
        file="coupon_service/store/queue_scripts.py",
        old="if redis.call('XLEN', entries) >= tonumber(waiting_max) then",
        new="if redis.call('XLEN', entries) > tonumber(waiting_max) then",
        tests=(f"{_FAULTS}test_a_full_queue_refuses_new_tickets_only",),
    ),
    Mutant(
        "late-finish-removes-anything",
        "a consumer that comes late removes whatever entry has the id of the one that it read",
        file="coupon_service/store/queue_scripts.py",
        old="  if there and token(there[2]) == known then\n",
        new="  if there then\n",
        tests=(f"{_QUEUES}test_a_late_finish_removes_no_entry_of_a_new_queue",),
    ),
    Mutant(
        "outage-refuses-tickets",
        "tickets are refused while the database cannot be reached",
        file="coupon_service/use_cases/queue_turn.py",
        old="            return error.retry_after_s is None\n",
        new="            return True\n",
        tests=(_NOT_ITS_OWN,),
    ),
    Mutant(
        "lost-batch-refuses-its-ticket",
        "a ticket is refused because the lane lost its batch, which may be committed",
        file="coupon_service/use_cases/queue_turn.py",
        old="        if isinstance(error, Internal):\n",
        new="        if isinstance(error, Exception) and error is None:\n",
        tests=(_NOT_ITS_OWN,),
    ),
    Mutant(
        "missing-table-refuses-tickets",
        "tickets are refused one after another for a fault that all of them meet",
        file="coupon_service/use_cases/queue_turn.py",
        old="            return alone and not sqlstate(error)\n",
        new="            return alone\n",
        tests=(_NOT_ITS_OWN,),
    ),
    Mutant(
        "one-queue-ends-the-others",
        "a queue that fails ends the consumer of others that succeed",
        file="coupon_service/use_cases/queue_consumer.py",
        old="if turn is _Turn.FAILED and done != self._done:",
        new="if turn is _Turn.EMPTY and done != self._done:",
        tests=(f"{_FAILURES}test_a_queue_that_fails_does_not_end_the_others_of_its_partition",),
    ),
    Mutant(
        "second-ticket-is-lost",
        "a ticket that was queued again while the first one was issued has no coupon",
        file="coupon_service/use_cases/queue_turn.py",
        old="    return Finished(entry, IssuedBefore(outcome.ticket_id))\n",
        new="    return Finished(entry)\n",
        tests=(f"{_FAULTS}test_queued_again_while_the_first_is_issued_both_tickets_are_issued",),
    ),
    Mutant(
        "tickets-of-others",
        "a user can read the tickets of others",
        file="coupon_service/use_cases/ticket.py",
        old="isinstance(found, TicketNotFound) or found.user_id != user_id:\n",
        new="isinstance(found, TicketNotFound):\n",
        tests=(f"{_TICKETS}test_tickets_of_others_and_of_nobody_are_not_found",),
    ),
)
