"""The sentences of the guide, by topic. Orderings that hold in every run, not single figures."""

from __future__ import annotations

from typing import Final

from benchmarks.lab.choices import CHOICES
from benchmarks.lab.sentences import Sentence

FOUND: Final = (
    # -- R1 ----------------------------------------------------------------------------------------
    Sentence(
        "charge",
        "Without a guard, {charge/none.lost} of {charge/none.succeeded} charges that were "
        "confirmed are missing from the balance.",
        ("charge/none.lost > 0",),
    ),
    Sentence(
        "charge",
        "A row version without a retry loses nothing, and sends {charge/optimistic.errored} of "
        "{charge/optimistic.asked} callers away with an error; with ten retries "
        "{charge/optimistic+10.succeeded} succeed, after {charge/optimistic+10.conflicts} "
        "conflicts.",
        (
            "charge/optimistic.errored > charge/optimistic.succeeded",
            "charge/optimistic+10.succeeded > charge/optimistic+1.succeeded",
        ),
    ),
    Sentence(
        "charge",
        "The lock belongs inside the retry: {charge/inside.wall_ms} against "
        "{charge/around.wall_ms} around the retries, where every pause is spent with the lock "
        "held. (The reports: 1,000 ms against 5,500 ms, computed there with two assumed conflicts; "
        "here the attempts that fail do their slow work under the lock too.)",
        ("charge/inside.wall_ms < charge/around.wall_ms",),
    ),
    Sentence(
        "charge",
        "A row lock, under which no attempt fails, is faster than either: "
        "{charge/pessimistic.wall_ms}.",
        ("charge/pessimistic.wall_ms < charge/inside.wall_ms",),
    ),
    Sentence(
        "charge",
        "Who waits for a row lock holds a session of PostgreSQL: "
        "{charge/pessimistic.connection_ms} in all, against {charge/handoff.connection_ms} where "
        "the waiters queue in Redis (the interferer's own sessions included).",
        ("charge/pessimistic.connection_ms > 2 * charge/handoff.connection_ms",),
    ),
    Sentence(
        "charge",
        "A conditional update does its slow work before it locks anything, so the charges work "
        "side by side: {charge/conditional.wall_ms}.",
        ("charge/conditional.wall_ms < 0.6 * charge/pessimistic.wall_ms",),
    ),
    Sentence(
        "charge",
        "A lane does the slow work once for a batch: {charge/lane.wall_ms}; if each command needs "
        "work of its own, {charge/lane-each.wall_ms}, about as long as a row "
        "lock takes.",
        (
            "charge/lane.wall_ms < charge/lane-each.wall_ms",
            "charge/lane-each.wall_ms > 0.6 * charge/pessimistic.wall_ms",
        ),
    ),
    # -- R2 ----------------------------------------------------------------------------------------
    Sentence(
        "deduct",
        "Without a guard, {deduct/none.lost} of {deduct/none.succeeded} confirmed deductions are "
        "missing.",
        ("deduct/none.lost > 0",),
    ),
    Sentence(
        "deduct",
        "Optimistic without a retry lets {deduct/optimistic.succeeded} of "
        "{deduct/optimistic.asked} through (the reports: 14 of 100), a row lock "
        "{deduct/pessimistic.succeeded}, in {deduct/pessimistic.wall_ms} (the reports: 100 of 100 "
        "in 442 ms).",
        (
            "deduct/optimistic.succeeded < 0.5 * deduct/optimistic.asked",
            "deduct/pessimistic.succeeded == deduct/pessimistic.asked",
        ),
    ),
    Sentence(
        "deduct",
        "Ten retries cost {deduct/optimistic+10.conflicts} conflicts and "
        "{deduct/optimistic+10.wall_ms}: under contention, retries are the load.",
        (
            "deduct/optimistic+10.conflicts > deduct/optimistic+10.asked",
            "deduct/optimistic+10.wall_ms > deduct/pessimistic.wall_ms",
        ),
    ),
    Sentence(
        "deduct",
        "FOR SHARE before an UPDATE deadlocks: {deduct/share.deadlocks} deadlocks, and "
        "{deduct/share.succeeded} of {deduct/share.asked} succeed before the time limit.",
        (
            "deduct/share.deadlocks > 0",
            "deduct/share.succeeded < 0.5 * deduct/share.asked",
        ),
    ),
    Sentence(
        "deduct",
        "A lock that fails at once refuses {deduct/simple.refused} of {deduct/simple.asked} "
        "deductions that the balance would have allowed.",
        ("deduct/simple.refused > 0.5 * deduct/simple.asked",),
    ),
    Sentence(
        "deduct",
        "Of the strategies that let everybody through, the lane takes the least database time: "
        "{deduct/lane.database_ms}, against {deduct/conditional.database_ms} of the conditional "
        "update and {deduct/pessimistic.database_ms} of the row lock.",
        (
            "deduct/lane.succeeded == deduct/lane.asked",
            "deduct/lane.database_ms < deduct/conditional.database_ms",
            "deduct/lane.database_ms < deduct/pessimistic.database_ms",
            "deduct/lane.database_ms < deduct/handoff.database_ms",
            "deduct/lane.database_ms < deduct/queue.database_ms",
        ),
    ),
    # -- R3 ----------------------------------------------------------------------------------------
    Sentence(
        "coupons",
        "A check before the write guards nothing by itself: {coupons/check.oversold} coupons too "
        "many, {coupons/check.doubled} for users who had one.",
        ("coupons/check.oversold > 0", "coupons/check.doubled > 0"),
    ),
    Sentence(
        "coupons",
        "In front of a guard it is worth its read: under the row lock it stops "
        "{coupons/pessimistic.first_check} of {coupons/pessimistic.asked} requests before any lock "
        "(the reports: about 99 % of duplicates).",
        ("coupons/pessimistic.first_check > 0.8 * coupons/pessimistic.asked",),
    ),
    Sentence(
        "coupons",
        "A key that is unique by user keeps duplicates out and oversells by "
        "{coupons/unique.oversold}; with the coupon's number unique as well the books are right, "
        "at {coupons/unique-number.conflicts} conflicts.",
        (
            "coupons/unique.doubled == 0",
            "coupons/unique.oversold > 0",
            "coupons/unique-number.wrong == 0",
            "coupons/unique-number.conflicts > coupons/conditional.conflicts",
        ),
    ),
    Sentence(
        "coupons",
        "A mark in Redis for each user stops {coupons/mark.first_check} duplicates and nobody who "
        "comes too late: sessions are in use for {coupons/mark.connection_ms}, against "
        "{coupons/conditional.connection_ms} with the check and the conditional update.",
        (
            "coupons/mark.wrong == 0",
            "coupons/mark.connection_ms > coupons/conditional.connection_ms",
        ),
    ),
    Sentence(
        "coupons",
        "The conditional update holds the campaign for one statement, the row lock for three: "
        "{coupons/conditional.connection_ms} of connection hold against "
        "{coupons/pessimistic.connection_ms}.",
        ("coupons/conditional.connection_ms < coupons/pessimistic.connection_ms",),
    ),
    Sentence(
        "coupons",
        "Shares help: {coupons/shares.wall_ms} in all, against {coupons/conditional.wall_ms} with "
        "one row.",
        ("coupons/shares.wall_ms < 0.9 * coupons/conditional.wall_ms",),
        group="shares",
    ),
    Sentence(
        "coupons",
        "Shares do not help here: {coupons/shares.wall_ms} in all, against "
        "{coupons/conditional.wall_ms} with one row. With a check in front, the campaign's row is "
        "not what the requests wait for.",
        ("coupons/shares.wall_ms >= 0.9 * coupons/conditional.wall_ms",),
        group="shares",
    ),
    # -- R4 ----------------------------------------------------------------------------------------
    Sentence(
        "orders",
        "A+B against B+A deadlocks {orders/unsorted.deadlocks} times, and "
        "{orders/unsorted.errored} orders fail, each after a second or more; the same locks in "
        "ascending order never do: {orders/sorted.succeeded} of {orders/sorted.asked} succeed, in "
        "{orders/sorted.wall_ms}.",
        (
            "orders/unsorted.deadlocks > 0",
            "orders/sorted.deadlocks == 0",
            "orders/sorted.succeeded == orders/sorted.asked",
        ),
    ),
    Sentence(
        "orders",
        "One lock on both keys does not deadlock either ({orders/several-keys.wall_ms}); a lane, "
        "which locks the rows of all its orders at once, takes {orders/lane.wall_ms}.",
        (
            "orders/several-keys.deadlocks == 0",
            "orders/lane.deadlocks == 0",
            "orders/lane.wall_ms < orders/several-keys.wall_ms",
        ),
    ),
    # -- R7 ----------------------------------------------------------------------------------------
    Sentence(
        "payments",
        "A flag in the memory of a process calls the gateway {payments/flag.gateway_calls} times "
        "where {payments/conditional.gateway_calls} are right: {payments/flag.doubled} payments "
        "are taken again.",
        ("payments/flag.doubled > 0",),
    ),
    Sentence(
        "payments",
        "A version that is compared after the call lets one caller win and comes too late: "
        "{payments/optimistic.gateway_calls} calls without a retry, "
        "{payments/optimistic+3.gateway_calls} with three (the reports: fails, 1/1/3, 0/5/0 ...).",
        ("payments/optimistic.doubled > 0", "payments/optimistic+3.doubled > 0"),
    ),
    Sentence(
        "payments",
        "What is written before the call is right each time: conditional update, unique key, the "
        "state inside the locking WHERE and the Redis key all refuse the other four of five. The "
        "p95 of those who succeed is {payments/conditional.succeeded_p95_ms} with the conditional "
        "update and {payments/mark.succeeded_p95_ms} with the Redis key (the reports: 599 ms and "
        "427 ms), most of it the gateway's own 100 to 500 ms.",
        (
            "payments/conditional.wrong == 0",
            "payments/unique.wrong == 0",
            "payments/state-in-lock.wrong == 0",
            "payments/mark.wrong == 0",
            "5 * payments/conditional.succeeded == payments/conditional.asked",
            "5 * payments/mark.succeeded == payments/mark.asked",
        ),
    ),
    Sentence(
        "payments",
        "A row lock that is held through the call is right and holds sessions for "
        "{payments/pessimistic.connection_ms}, against {payments/conditional.connection_ms}.",
        (
            "payments/pessimistic.wrong == 0",
            "payments/pessimistic.connection_ms > 5 * payments/conditional.connection_ms",
        ),
    ),
    # -- R9 ----------------------------------------------------------------------------------------
    Sentence(
        "seats",
        "Without a guard the one seat is sold {seats/none.succeeded} times.",
        ("seats/none.doubled > 0",),
    ),
    Sentence(
        "seats",
        "Losers get their answer soonest where they queue for nothing: their p99 is "
        "{seats/conditional.refused_p99_ms} with a conditional update, "
        "{seats/no-wait.refused_p99_ms} with NOWAIT and {seats/simple.refused_p99_ms} with a lock "
        "that fails at once, against {seats/handoff.refused_p99_ms} where each is handed the lock "
        "to find the seat taken.",
        (
            "seats/conditional.refused_p99_ms < seats/handoff.refused_p99_ms",
            "seats/no-wait.refused_p99_ms < seats/handoff.refused_p99_ms",
            "seats/simple.refused_p99_ms < seats/handoff.refused_p99_ms",
        ),
    ),
    Sentence(
        "seats",
        "Losers that wait for the row hold sessions meanwhile: {seats/pessimistic.connection_ms} "
        "in all, against {seats/no-wait.connection_ms} with NOWAIT.",
        ("seats/pessimistic.connection_ms > seats/no-wait.connection_ms",),
    ),
    Sentence(
        "seats",
        "The version behind the lock costs nothing that shows: {seats/handoff+version.wall_ms} "
        "with it, {seats/handoff.wall_ms} without.",
        ("seats/handoff+version.wall_ms < 2 * seats/handoff.wall_ms",),
    ),
    # -- many accounts -----------------------------------------------------------------------------
    Sentence(
        "uniform",
        "Even over {uniform/none.asked} requests on as many accounts, {uniform/none.lost} updates "
        "are lost without a guard.",
        ("uniform/none.lost > 0",),
    ),
    Sentence(
        "uniform",
        "Conflicts are rare here, which suits a version: {uniform/optimistic.errored} of "
        "{uniform/optimistic.asked} fail without a retry, none with ten.",
        (
            "uniform/optimistic.errored < 0.1 * uniform/optimistic.asked",
            "uniform/optimistic+10.succeeded == uniform/optimistic+10.asked",
        ),
    ),
    Sentence(
        "uniform",
        "A lock in Redis is then a cost without a use: {uniform/handoff.wall_ms}, against "
        "{uniform/conditional.wall_ms} of the conditional update.",
        ("uniform/handoff.wall_ms > uniform/conditional.wall_ms",),
    ),
    Sentence(
        "uniform",
        "So is a queue: {uniform/queue.wall_ms}, since one consumer per partition commits one "
        "request at a time.",
        ("uniform/queue.wall_ms > uniform/conditional.wall_ms",),
    ),
    Sentence(
        "uniform",
        "The lane takes {uniform/lane.database_ms} of database time, the conditional update "
        "{uniform/conditional.database_ms}.",
        ("uniform/lane.database_ms < uniform/conditional.database_ms",),
    ),
    *CHOICES,
)
