"""The contention view: where do requests meet, and which guard decides between them?"""

from __future__ import annotations

from typing import Final

from deploy.monitoring.panels import Limits, Line, Panel, Row, Shape, Unit, View
from deploy.monitoring.queries import Mean, Now, Quantile, Rate, Series
from deploy.monitoring.readings import SERVICE

BY_LANE: Final = ("lane",)
BATCHES: Final = Series("tally_lane_batch_commands")

REDIS_ABSENT: Final = Panel(
    "Locking without Redis",
    "Whether a replica of the service goes on without the Redis lock: requests meet in the "
    "database, which decides as before, more slowly.",
    Unit.SWITCH,
    (Line(Now("max", Series("tally_lock_absent"), (SERVICE,))),),
    Shape.FIGURE,
    Limits(1, 1),
    width=12,
)
DEADLOCKS: Final = Panel(
    "Deadlocks",
    "Transactions that PostgreSQL ended to resolve a deadlock, per minute; they are run again. "
    "Tally locks in one order, so any is a defect, or somebody else writes to the database.",
    Unit.PER_MINUTE,
    (Line(Rate(Series("tally_database_deadlocks_total"), (SERVICE,), 60)),),
    Shape.FIGURE,
    Limits(0.1, 1),
    width=12,
)
LOCK_KEYS: Final = Panel(
    "Redis locks of lanes",
    "Keys that lanes asked for, by outcome: held, busy (another replica holds it), absent (Redis "
    "unavailable) or cross_slot. Much busy: replicas meet on the same rows.",
    Unit.PER_SECOND,
    (Line(Rate(Series("tally_lock_keys_total"), ("outcome",))),),
)
LOCK_WAITS: Final = Panel(
    "Ends of waits for a busy Redis lock",
    "Waits by how they ended: released, or limit: the command goes on without the lock.",
    Unit.PER_SECOND,
    (Line(Rate(Series("tally_lock_waits_total"), ("end",))),),
)
CONFLICTS: Final = Panel(
    "Version conflicts",
    "Commands decided again since their row had changed between reading and writing, by lane. "
    "They are retried; a command that loses ten times is refused.",
    Unit.PER_SECOND,
    (Line(Rate(Series("tally_lane_version_conflicts_total"), BY_LANE)),),
)
LANE_DEPTH: Final = Panel(
    "Commands in lanes",
    "Commands that wait in a lane or are being decided, by lane. At its limit a lane refuses with "
    "OVERLOADED.",
    Unit.NUMBER,
    (Line(Now("sum", Series("tally_lane_commands"), BY_LANE)),),
    Shape.STACK,
)
LANE_AGE: Final = Panel(
    "Oldest command in lanes",
    "How long the oldest command has been in a lane, in any replica. As long as a batch takes is "
    "normal; seconds mean that the database, or a row that somebody holds, stops it.",
    Unit.SECONDS,
    (Line(Now("max", Series("tally_lane_oldest_wait_seconds"), BY_LANE)),),
    limits=Limits(0.5, 2.0),
)
LANE_LOCK_WAIT: Final = Panel(
    "Waits for locks of others",
    "The 99th percentile of the time that commands wait for a Redis lock or a row that others "
    "hold, by lane. Those that find them free do not count.",
    Unit.SECONDS,
    (Line(Quantile(0.99, Series("tally_lane_lock_wait_seconds"), BY_LANE)),),
    limits=Limits(0.1, 0.5),
)
LANE_LOCK_HOLD: Final = Panel(
    "Time for which batches hold their locks",
    "The 99th percentile of the time for which a batch has its Redis locks and its rows, by lane: "
    "whoever wants them too waits as long.",
    Unit.SECONDS,
    (Line(Quantile(0.99, Series("tally_lane_lock_hold_seconds"), BY_LANE)),),
    limits=Limits(0.1, 0.5),
)
LANE_RATE: Final = Panel(
    "Commands decided by lanes",
    "Commands that entered a batch, by lane.",
    Unit.PER_SECOND,
    (Line(Rate(BATCHES.suffixed("_sum"), BY_LANE)),),
    Shape.STACK,
)
BATCH_SIZE: Final = Panel(
    "Commands in a batch",
    "The mean number of commands that share a transaction, by lane. It rises with the load; 1 is "
    "an idle lane.",
    Unit.NUMBER,
    (Line(Mean(BATCHES, BY_LANE)),),
)
LANE_FAULTS: Final = Panel(
    "Faults of batches",
    "Transactions of lanes that failed and were run again, divided or given up, per minute, by "
    "lane and fault: held is a row that somebody does not release, contention a deadlock or a "
    "stale read, connection the database away, slow and overload too much work.",
    Unit.PER_MINUTE,
    (Line(Rate(Series("tally_lane_faults_total"), ("lane", "fault"), 60)),),
    width=12,
)
CONSTRAINTS: Final = Panel(
    "Last guards that held",
    "Transactions that a named constraint ended, per minute. The constraint is the last of three "
    "lines of defence: a few are races, many mean that the first two do not work.",
    Unit.PER_MINUTE,
    (Line(Rate(Series("tally_constraint_violations_total"), ("constraint",), 60)),),
    width=12,
)
BULKHEADS: Final = Panel(
    "Transactions refused for lack of sessions",
    "Transactions refused with OVERLOADED since their bulkhead was full, per minute.",
    Unit.PER_MINUTE,
    (Line(Rate(Series("tally_bulkhead_refusals_total"), (SERVICE, "bulkhead"), 60)),),
    width=12,
)
LOADERS: Final = Panel(
    "Reads in a statement",
    "The mean number of reads by key that share a statement, by loader.",
    Unit.NUMBER,
    (Line(Mean(Series("tally_loader_batch_calls"), ("loader",))),),
    width=12,
)
KEY_LOCK_WAIT: Final = Panel(
    "Wait for key locks",
    "The 99th percentile of the time from the request of a key lock to its acquisition, by lock.",
    Unit.SECONDS,
    (Line(Quantile(0.99, Series("tally_key_lock_wait_seconds"), ("lock",))),),
)
KEY_LOCK_PATHS: Final = Panel(
    "Key locks taken",
    "Key locks taken per minute, by path: reply, message (handed over by another process), local "
    "or absent (Redis unavailable: not locked).",
    Unit.PER_MINUTE,
    (Line(Rate(Series("tally_key_lock_acquisitions_total"), ("lock", "path"), 60)),),
)
KEY_LOCK_ENDS: Final = Panel(
    "Key locks refused and lost",
    "Key locks not taken, by reason, and locks that ended before their holder, by kind, per "
    "minute. Lost: the work took longer than its lease.",
    Unit.PER_MINUTE,
    (
        Line(Rate(Series("tally_key_lock_refusals_total"), ("lock", "reason"), 60), "refused"),
        Line(Rate(Series("tally_key_lock_losses_total"), ("lock", "kind"), 60), "ended"),
    ),
)
QUEUE_DEPTH: Final = Panel(
    "Tickets that wait",
    "Tickets in the queues of the coupon service, by partition.",
    Unit.NUMBER,
    (Line(Now("sum", Series("tally_queue_depth"), ("partition",))),),
    Shape.STACK,
)
QUEUE_AGE: Final = Panel(
    "Wait of the first ticket",
    "How long the first ticket of a partition's slowest queue has been waiting.",
    Unit.SECONDS,
    (Line(Now("max", Series("tally_queue_age_seconds"), ("partition",))),),
)
QUEUE_CONSUMERS: Final = Panel(
    "Consumers of queues",
    "Replicas that consume each partition. It has to be 1: 0 issues nothing, and of 2 the database "
    "admits only the later one.",
    Unit.NUMBER,
    (Line(Now("sum", Series("tally_queue_consuming"), ("partition",))),),
)

VIEW: Final = View(
    "contention",
    "Tally: contention",
    "Where do requests meet, and which guard decides between them?",
    (
        Row("Now", (REDIS_ABSENT, DEADLOCKS)),
        Row("First line: Redis locks", (LOCK_KEYS, LOCK_WAITS, CONFLICTS)),
        Row(
            "Lanes",
            (
                *(LANE_DEPTH, LANE_RATE, BATCH_SIZE),
                *(LANE_AGE, LANE_LOCK_WAIT, LANE_LOCK_HOLD),
                *(LANE_FAULTS, CONSTRAINTS),
            ),
        ),
        Row("Sessions and reads", (BULKHEADS, LOADERS)),
        Row("Key locks", (KEY_LOCK_WAIT, KEY_LOCK_PATHS, KEY_LOCK_ENDS)),
        Row("Queues of tickets", (QUEUE_DEPTH, QUEUE_AGE, QUEUE_CONSUMERS)),
    ),
)
