"""docs/metrics.md: every metric, written from the code, and the question that it answers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from common.db.figures import StoredFigures
from common.metrics import REGISTRY
from deploy.audit import metrics as audit_metrics

SERVICES: Final = ("balance", "coupon", "order", "payment")

INTRODUCTION: Final = """\
<!-- Written by `make docs` from the code. Do not edit. -->

# Metrics

With `TALLY_METRICS_PORT` set, a replica serves this page for Prometheus. A counter's name ends in
`_total` there, and a histogram has `_bucket`, `_sum` and `_count`. Times are in seconds. No label
has an id or a text from a client. Counters begin at 0 with all values of their labels that the code
knows, so that `increase()` sees the first event; [errors](errors.md) lists those of calls.

Metrics whose name begins with `tally_active_` or `tally_open_` are read from the database: every
replica of a service exports the same figures, once in 15 s, and none if its read failed. Use
`max by (...)` for them, never `sum`.

Those whose name begins with `tally_audit_` are on the page of `python -m deploy.audit serve` alone
([the audit](guides/audit.md)).

| metric | type | labels | meaning | answers |
|---|---|---|---|---|
"""

QUESTIONS: Final = {
    "tally_active_failed_compensations": "Is money held back by an undo that fails?",
    "tally_active_failed_compensations_oldest_seconds": "For how long has an undo failed?",
    "tally_active_sagas": "How many sagas are on their way, and how many are stuck?",
    "tally_active_sagas_oldest_seconds": "How long has the oldest been on its way?",
    "tally_audit_breaches": "Do the books balance?",
    "tally_audit_completion_timestamp_seconds": "How old is the last verdict on the books?",
    "tally_audit_new_standing": "Has a person let an effect stand since the night before?",
    "tally_audit_runs": "How do audits end, and does one fail?",
    "tally_audit_standing_minor": "How much money waits for a person's decision to be settled?",
    "tally_audit_start_timestamp_seconds": "When did the last audit begin, and is it stuck?",
    "tally_background_work_failures": "Does a sweep fail?",
    "tally_background_work_success_timestamp_seconds": "Is a sweep overdue?",
    "tally_build": "Which release runs where?",
    "tally_bulk_items": "How do the items of bulk calls end?",
    "tally_bulkhead_refusals": "Which kind of work is refused for lack of connections?",
    "tally_call_retries": "Which other service makes callers repeat?",
    "tally_circuit_open": "What is taken as away just now?",
    "tally_constraint_violations": "Which last guard had to hold?",
    "tally_database_deadlocks": "Do transactions lock rows in different orders?",
    "tally_event_loop_lag_seconds": "Is the process too busy, or does something block it?",
    "tally_gateway_call_seconds": "How slow is the gateway?",
    "tally_gateway_outcomes": "What does the gateway reply?",
    "tally_grpc_call_seconds": "How long do calls take?",
    "tally_grpc_calls": "How many calls, and how do they end?",
    "tally_grpc_calls_in_flight": "How near is the limit of calls?",
    "tally_identity_keys_read_timestamp_seconds": "Is the issuer's JWKS still read?",
    "tally_identity_signatures": "How many tokens are new, and how many are forged?",
    "tally_identity_tokens": "How near is the limit of remembered tokens?",
    "tally_key_lock_acquisitions": "By which way do tasks get their lock?",
    "tally_key_lock_hold_seconds": "How long is a lock held?",
    "tally_key_lock_losses": "Does work outlast its lease?",
    "tally_key_lock_refusals": "Does work end without its lock?",
    "tally_key_lock_wait_seconds": "How long does a task wait for its lock?",
    "tally_lane_batch_commands": "How many commands share a transaction?",
    "tally_lane_commands": "Do calls wait for the database?",
    "tally_lane_faults": "Why were transactions run again or given up?",
    "tally_lane_lock_hold_seconds": "How long does a batch keep rivals out?",
    "tally_lane_lock_wait_seconds": "How long do commands wait for what others have locked?",
    "tally_lane_oldest_wait_seconds": "Is a command stuck in a lane?",
    "tally_lane_retries_exhausted": "Are commands refused for a row that others keep?",
    "tally_lane_version_conflicts": "How often do replicas meet on one row?",
    "tally_loader_batch_calls": "How many reads share a statement?",
    "tally_lock_absent": "Do calls go on without Redis?",
    "tally_lock_keys": "How often is the first line busy or absent?",
    "tally_lock_waits": "Are waits for a lane's lock ended by its release?",
    "tally_marks": "How often does a payment key come twice at the same time?",
    "tally_open_payments": "How many charges have an unknown outcome, or wait for their refund?",
    "tally_open_payments_oldest_seconds": "How long has the oldest been open?",
    "tally_pause_file_rejected": "Did a pause not take effect, since its file is wrong?",
    "tally_paused_methods": "Has an operator paused something here?",
    "tally_pool_sessions_in_use": "How near is the limit of connections?",
    "tally_pool_waiting": "Do transactions wait for a connection?",
    "tally_queue_age_seconds": "How long do users wait in a queue?",
    "tally_queue_consuming": "Does exactly one replica consume each partition?",
    "tally_queue_depth": "How many users wait in queues?",
    "tally_queue_lag_seconds": "How far behind is the consumer?",
    "tally_queue_requests": "How do calls to queue end?",
    "tally_queue_superseded": "Do consumers outlast their lease?",
    "tally_queue_tickets": "How do tickets end?",
    "tally_rate_limit_batch_calls": "How many calls share a question to Redis about their limit?",
    "tally_rate_limit_decisions": "Do users reach their limits, and does Redis decide?",
    "tally_ready": "Is the replica in service?",
    "tally_saga_losses": "Do replicas lose their sagas to others?",
    "tally_saga_steps": "Which step of a payment fails?",
    "tally_saga_takeovers": "Do replicas die or hang, and do sagas come back from their pauses?",
    "tally_sagas": "How do payments and cancellations end?",
    "tally_sagas_running": "How many sagas run in this replica?",
    "tally_stored_figures_read_timestamp_seconds": "How old are the figures from the database?",
    "tally_tls_certificate_expiry_timestamp_seconds": (
        "Is a certificate that was renewed in use, and when does the one in use expire?"
    ),
    "tally_unexpected_errors": "Has Tally a defect?",
    "tally_unreadable_rows": "Are there rows of a newer release?",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of the code."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str


def metrics() -> list[Metric]:
    """All metrics of the four services and of the audit, by name."""
    for service in SERVICES:
        importlib.import_module(f"{service}_service.wiring")
    importlib.import_module("common.service")
    importlib.import_module("common.locking.key_locks")
    return sorted(set(_registered()), key=lambda one: one.name)


def page() -> str:
    """The whole page, as it has to be. Raises KeyError for a metric without its question."""
    return INTRODUCTION + "".join(
        f"| `{one.name}` | {one.type} | {', '.join(f'`{label}`' for label in one.labels)} |"
        f" {one.meaning} | {QUESTIONS[one.name]} |\n"
        for one in metrics()
    )


def _registered() -> Iterator[Metric]:
    for collector in (*_collectors(REGISTRY), *_collectors(audit_metrics.REGISTRY)):
        if isinstance(collector, StoredFigures):
            for figure in collector.figures:
                for gauge in figure.families():
                    yield Metric(gauge.name, gauge.type, figure.labels, gauge.documentation)
        elif isinstance(collector, MetricWrapperBase):
            labels = tuple(collector._labelnames)  # noqa: SLF001
            for family in collector.describe():
                yield Metric(family.name, family.type, labels, family.documentation)


def _collectors(registry: CollectorRegistry) -> Iterator[Collector]:
    yield from registry._collector_to_names  # noqa: SLF001 - the library has no list of its own
