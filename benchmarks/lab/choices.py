"""The sentences of the guide that say which strategy to choose, after the reports' criteria."""

from __future__ import annotations

from typing import Final

from benchmarks.lab.sentences import Sentence

CHOICE: Final = "choice"

CHOICES: Final = (
    Sentence(
        CHOICE,
        "*The change fits into one statement with its condition* (a counter, a state): conditional "
        "update. It is right everywhere, waits for the shortest time, and needs no retry: "
        "{deduct/conditional.succeeded} of {deduct/conditional.asked} deductions at once, in "
        "{deduct/conditional.wall_ms}.",
        ("deduct/conditional.succeeded == deduct/conditional.asked",),
    ),
    Sentence(
        CHOICE,
        "*Conflicts are rare, the work can be repeated, and speed matters*: row version with "
        "retries. {uniform/optimistic+10.conflicts} conflicts in {uniform/optimistic+10.asked} "
        "charges of many accounts, but {deduct/optimistic+10.conflicts} in "
        "{deduct/optimistic+10.asked} on one.",
        (
            "uniform/optimistic+10.conflicts < 0.1 * uniform/optimistic+10.asked",
            "deduct/optimistic+10.conflicts > deduct/optimistic+10.asked",
        ),
    ),
    Sentence(
        CHOICE,
        "*Conflicts are common, the work cannot be repeated, or accuracy matters most*: row lock, "
        "several rows in ascending order, each wait limited: {deduct/pessimistic.errored} errors "
        "in {deduct/pessimistic.asked} deductions, {orders/sorted.deadlocks} deadlocks.",
        ("deduct/pessimistic.errored == 0", "orders/sorted.deadlocks == 0"),
    ),
    Sentence(
        CHOICE,
        "*Another system is called*: write the claim first, by a conditional update or a unique "
        "key, and commit it before the call: {payments/unique.gateway_calls} calls for "
        "{payments/unique.succeeded} payments.",
        ("payments/unique.gateway_calls == payments/unique.succeeded",),
    ),
    Sentence(
        CHOICE,
        "*Waiters fill the sessions of PostgreSQL*: a handoff lock in front, never instead, of one "
        "of these. It takes {deduct/handoff.connection_ms} of connection hold where the row lock "
        "takes {deduct/pessimistic.connection_ms}, and {deduct/handoff.redis_calls} calls where "
        "the spin lock takes {deduct/spin.redis_calls}. A retry takes it anew.",
        (
            "deduct/handoff.connection_ms < deduct/pessimistic.connection_ms",
            "deduct/handoff.redis_calls < deduct/spin.redis_calls",
        ),
    ),
    Sentence(
        CHOICE,
        "*A loser gets its answer at once and is not retried*: conditional update after an "
        "unlocked read; a p99 of {seats/conditional.refused_p99_ms} for "
        "{seats/conditional.refused} losers.",
        ("seats/conditional.refused_p99_ms < seats/handoff.refused_p99_ms",),
    ),
    Sentence(
        CHOICE,
        "*The order of arrival must be kept, or callers want to see their place*: a queue. It is "
        "right with no guard but its one consumer, and takes {deduct/queue.wall_ms} where the "
        "lane takes {deduct/lane.wall_ms}, besides the consumer's election, its fence and "
        "its lost entries, which the lab leaves out.",
        ("deduct/queue.wrong == 0", "deduct/queue.wall_ms > deduct/lane.wall_ms"),
    ),
    Sentence(
        CHOICE,
        "*Many callers want the same rows of a service of your own*: a lane. "
        "{deduct/lane.wall_ms} for {deduct/lane.asked} deductions at once, with "
        "{deduct/lane.connection_ms} of connection hold, at the price of batches in every process.",
        (
            "deduct/lane.succeeded == deduct/lane.asked",
            "deduct/lane.connection_ms < deduct/pessimistic.connection_ms",
        ),
    ),
)
