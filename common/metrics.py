"""The metrics that every service has, on one registry.

Names begin with ``tally_``. A service defines its own metrics in its own package, with
``registry=REGISTRY``. Labels are methods, codes and names from the code, never ids or other text
from clients: each new label value would stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

# A third of the page would be times at which series were created, which no rule and no panel reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

LATENCY_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


def new_registry() -> CollectorRegistry:
    """A registry with what every process exports about itself."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


# Not the library's global registry, where other libraries register metrics of their own.
REGISTRY: Final = new_registry()

CALLS: Final = Counter(
    "tally_grpc_calls",
    "gRPC calls that ended, by full method name, status code and reason ('' with OK, CANCELLED and "
    "a deadline that passed).",
    ("method", "code", "reason"),
    registry=REGISTRY,
)
BULK_ITEMS: Final = Counter(
    "tally_bulk_items",
    "Items of bulk calls, by the call's full method name, and code and reason of the item.",
    ("method", "code", "reason"),
    registry=REGISTRY,
)
LATENCY: Final = Histogram(
    "tally_grpc_call_seconds",
    "Time from a unary call's arrival in the handler to its answer, in seconds.",
    ("method",),
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
IN_FLIGHT: Final = Gauge(
    "tally_grpc_calls_in_flight",
    "gRPC calls that are being served now; health and reflection are not counted.",
    registry=REGISTRY,
)
UNEXPECTED: Final = Counter(
    "tally_unexpected_errors",
    "Exceptions that no code expected, by full method name; each is logged with its error_id.",
    ("method",),
    registry=REGISTRY,
)
RETRIES: Final = Counter(
    "tally_call_retries",
    "Outgoing calls that were repeated, by operation and the status code that led to it.",
    ("operation", "code"),
    registry=REGISTRY,
)
LOOP_LAG: Final = Histogram(
    "tally_event_loop_lag_seconds",
    "How late the event loop ran a timer that is due ten times a second, in seconds: every call "
    "waits about as long each time it waits for anything.",
    buckets=LATENCY_BUCKETS_S,
    registry=REGISTRY,
)
BUILD: Final = Info("tally_build", "Versions of the running release, as labels.", registry=REGISTRY)
READY: Final = Gauge(
    "tally_ready", "1 while this replica's health is SERVING, else 0.", registry=REGISTRY
)

# Of identity and TLS. Defined here, so that they are exported where these are off.
SIGNATURES: Final = Counter(
    "tally_identity_signatures",
    "Signatures of tokens that were verified, by outcome (valid, wrong, or refused: too many wrong "
    "ones came from the address). A token that was verified before is not verified again.",
    ("outcome",),
    registry=REGISTRY,
)
REMEMBERED_TOKENS: Final = Gauge(
    "tally_identity_tokens", "Verified tokens that this replica remembers.", registry=REGISTRY
)
KEYS_READ: Final = Gauge(
    "tally_identity_keys_read_timestamp_seconds",
    "Unix time at which the keys of tokens were last read; 0: never, or identity is off.",
    registry=REGISTRY,
)
CERTIFICATE_EXPIRY: Final = Gauge(
    "tally_tls_certificate_expiry_timestamp_seconds",
    "Unix time at which the certificate in use expires, by the port that it is for.",
    ("port",),
    registry=REGISTRY,
)


def from_zero(metric: Counter | Histogram, *values: Iterable[str]) -> None:
    """Export the metric with every combination of its labels' values before the first event.

    ``increase()`` does not count what a series begins with. ``values``: of each label, in order.
    """
    for labels in product(*values):
        metric.labels(*labels)


from_zero(SIGNATURES, ("valid", "wrong", "refused"))
