"""The services view: are calls served, how fast, and what do replicas lack?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from deploy.monitoring.panels import Limits, Line, Panel, Row, Shape, Unit, View
from deploy.monitoring.queries import Now, Quantile, Rate, Series, Share, Since
from deploy.monitoring.readings import JOB, SERVICE

CALLS: Final = "tally_grpc_calls_total"
SECONDS: Final = Series("tally_grpc_call_seconds")
NOT_SERVED: Final = {"code": "INTERNAL|UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED"}
OVERLOADED: Final = {"reason": "OVERLOADED"}
OK: Final = {"code": "OK"}
BY_SERVICE: Final = (SERVICE,)
TOP: Final = 10
STREAMS: Final = ".*/Watch.*"
_SLOW_BY_NATURE: Final = (
    ".*/(Batch.*|PayOrder|CancelOrder|ConfirmPayment|CancelPayment|Resolve.*|RetrySagas?)"
)
"""Bulk calls, and methods that may wait for the payment gateway."""


def _share(where: Mapping[str, str]) -> Share:
    """Of all calls but those of paused methods, and streams, which end by their deadlines."""
    unless = {"method": STREAMS, "reason": "PAUSED"}
    return Share(Rate(Series(CALLS, where, unless)), Rate(Series(CALLS, unless=unless)))


READY: Final = Panel(
    "Replicas in service",
    "Replicas whose health is SERVING, by service. Fewer than were deployed: look at their "
    "readiness probes and at the database of that service.",
    Unit.NUMBER,
    (Line(Now("sum", Series("tally_ready"), BY_SERVICE)),),
    Shape.FIGURE,
    width=6,
)
CALLS_BY_SERVICE: Final = Panel(
    "Calls",
    "gRPC calls that ended, however they did, by service. A sudden end of traffic to one service "
    "is as bad as errors.",
    Unit.PER_SECOND,
    (Line(Rate(Series(CALLS), BY_SERVICE)),),
    Shape.STACK,
)
NOT_SERVED_SHARE: Final = Panel(
    "Calls not served",
    "The share of calls that ended with INTERNAL, UNKNOWN, UNAVAILABLE or DEADLINE_EXCEEDED. The "
    "objective is 0.1 % over 30 days. Refusals by a rule are no errors, nor are those of methods "
    "that an operator has paused.",
    Unit.SHARE,
    (Line(_share(NOT_SERVED)),),
    Shape.FIGURE,
    Limits(0.001, 0.01),
    width=6,
)
OVERLOADED_SHARE: Final = Panel(
    "Calls refused for lack of capacity",
    "The share of calls that were refused with OVERLOADED: a replica's own limits were reached. "
    "They count against the objective too.",
    Unit.SHARE,
    (Line(_share(OVERLOADED)),),
    Shape.FIGURE,
    Limits(0.001, 0.01),
    width=6,
)
FAST_ENOUGH: Final = Panel(
    "99 % of calls without the gateway end within",
    "The 99th percentile of the time of calls, without bulk calls and those that may wait for the "
    "payment gateway. The objective is 250 ms.",
    Unit.SECONDS,
    (Line(Quantile(0.99, Series(SECONDS.name, unless={"method": _SLOW_BY_NATURE}))),),
    Shape.FIGURE,
    Limits(0.25, 1.0),
    width=6,
)
BUSIEST: Final = Panel(
    "Busiest methods",
    "The ten methods that are called most.",
    Unit.PER_SECOND,
    (Line(Rate(Series(CALLS), ("method",), top=TOP)),),
)
REASONS: Final = Panel(
    "Refusals and errors by reason",
    "Calls that did not end with OK, by status code and reason; the ten most frequent. Most are "
    "refusals by a rule, such as COUPON_SOLD_OUT. Without a reason: cancelled by the caller, or "
    "its deadline passed.",
    Unit.PER_SECOND,
    (Line(Rate(Series(CALLS, unless={**OK, "method": STREAMS}), ("code", "reason"), top=TOP)),),
)
ERRORS: Final = Panel(
    "Calls not served by method",
    "Calls that ended with INTERNAL, UNKNOWN, UNAVAILABLE or DEADLINE_EXCEEDED, by method. One "
    "service alone: its database or its replicas. All: the network, or a deadline that is too "
    "short.",
    Unit.PER_SECOND,
    (
        Line(
            Rate(
                Series(CALLS, NOT_SERVED, {"method": STREAMS, "reason": "PAUSED"}),
                ("method", "code"),
                top=TOP,
            )
        ),
    ),
)
DEFECTS: Final = Panel(
    "Unexpected errors",
    "Exceptions that no code expected, and periodic jobs that failed, per minute. The log has each "
    "with its traceback. Defects of Tally, unless a database is away.",
    Unit.PER_MINUTE,
    (
        Line(Rate(Series("tally_unexpected_errors_total"), BY_SERVICE, 60), "errors"),
        Line(Rate(Series("tally_background_work_failures_total"), ("work",), 60), "job"),
    ),
)
LATENCY: Final = Panel(
    "Time of calls",
    "Median and 99th percentile of the time from a call's arrival to its answer, by service. "
    "Calls of order and payment may wait for the payment gateway.",
    Unit.SECONDS,
    (
        Line(Quantile(0.5, SECONDS, BY_SERVICE), "50 %"),
        Line(Quantile(0.99, SECONDS, BY_SERVICE), "99 %"),
    ),
    width=12,
)
SLOWEST: Final = Panel(
    "Time of calls by method",
    "The 99th percentile of the time of calls, by method.",
    Unit.SECONDS,
    (Line(Quantile(0.99, SECONDS, ("method",))),),
    width=12,
)
IN_FLIGHT: Final = Panel(
    "Calls in flight",
    "Calls that are being served now. At its limit a replica refuses with OVERLOADED.",
    Unit.NUMBER,
    (Line(Now("sum", Series("tally_grpc_calls_in_flight"), BY_SERVICE)),),
    Shape.STACK,
)
LOOP_LAG: Final = Panel(
    "Event loop lag",
    "How late the event loop runs a timer, 99th percentile. Every call waits about as long each "
    "time it waits for anything. Above 50 ms a replica has too much to do, or something blocks it.",
    Unit.SECONDS,
    (Line(Quantile(0.99, Series("tally_event_loop_lag_seconds"), BY_SERVICE)),),
    limits=Limits(0.05, 0.25),
)
SESSIONS: Final = Panel(
    "Database sessions in use",
    "Sessions in use by service and pool. A pool that stays at its limit makes transactions wait.",
    Unit.NUMBER,
    (Line(Now("sum", Series("tally_pool_sessions_in_use"), (SERVICE, "pool"))),),
    Shape.STACK,
)
SESSION_WAITS: Final = Panel(
    "Transactions that wait for a session",
    "Transactions and reads that wait for a database session, by service and pool. More than 0 for "
    "long: the database is slow, or the pool too small.",
    Unit.NUMBER,
    (Line(Now("sum", Series("tally_pool_waiting"), (SERVICE, "pool"))),),
    Shape.STACK,
)
CIRCUITS: Final = Panel(
    "Open circuits",
    "Circuits that refuse calls now, since their place failed several times in a row: in at least "
    "one replica.",
    Unit.SWITCH,
    (Line(Now("max", Series("tally_circuit_open"), (SERVICE, "circuit"))),),
)
RETRIES: Final = Panel(
    "Calls repeated between services",
    "Outgoing calls that were repeated, by operation and the code that led to it. They succeed in "
    "the end, unless the other service shows errors too.",
    Unit.PER_MINUTE,
    (Line(Rate(Series("tally_call_retries_total"), ("operation", "code"), 60)),),
)
JOBS: Final = Panel(
    "Time since the last success of periodic jobs",
    "Seconds since a periodic job last succeeded in any replica, by job. Most run every few "
    "seconds, clean_up_answers once an hour.",
    Unit.SECONDS,
    (
        Line(
            Since(
                Series("tally_background_work_success_timestamp_seconds"),
                (SERVICE, "work"),
            )
        ),
    ),
    width=12,
)
BULK: Final = Panel(
    "Items of bulk calls",
    "Items of BatchWrite and BatchIssueCoupons, by the item's code and reason.",
    Unit.PER_SECOND,
    (Line(Rate(Series("tally_bulk_items_total"), ("method", "code", "reason"), top=TOP)),),
    width=12,
)
CPU: Final = Panel(
    "Processor time",
    "Cores in use by service, all replicas together. A replica uses one core at most.",
    Unit.NUMBER,
    (Line(Rate(Series("process_cpu_seconds_total", JOB), BY_SERVICE)),),
    Shape.STACK,
)
MEMORY: Final = Panel(
    "Memory",
    "Resident memory of the largest replica, by service. It rises in the first minutes and then "
    "stays.",
    Unit.BYTES,
    (Line(Now("max", Series("process_resident_memory_bytes", JOB), BY_SERVICE)),),
)
RELEASES: Final = Panel(
    "Replicas by release",
    "Replicas by the release that they run. Two releases at the same time: an upgrade is under "
    "way.",
    Unit.NUMBER,
    (Line(Now("sum", Series("tally_build_info"), (SERVICE, "version"))),),
    Shape.STACK,
)

VIEW: Final = View(
    "services",
    "Tally: services",
    "Are calls served, how fast, and what do the replicas lack?",
    (
        Row("Now", (READY, NOT_SERVED_SHARE, OVERLOADED_SHARE, FAST_ENOUGH)),
        Row("Calls", (CALLS_BY_SERVICE, BUSIEST, REASONS, ERRORS, DEFECTS, RETRIES)),
        Row("Time", (LATENCY, SLOWEST)),
        Row("Limits of a replica", (IN_FLIGHT, SESSIONS, SESSION_WAITS, LOOP_LAG, CPU, MEMORY)),
        Row("Work and places", (CIRCUITS, RELEASES, JOBS, BULK)),
    ),
)
