"""The metrics of ``python -m deploy.audit serve``, on its own Prometheus page."""

from __future__ import annotations

import math
from typing import Final

from prometheus_client import Counter, Gauge

from common.metrics import BUILD, new_registry
from deploy.audit.checkpoint import Memory, Verdict

# Not the registry of the services: an audit is no replica that is ready or serves calls.
REGISTRY: Final = new_registry()
REGISTRY.register(BUILD)

SCOPES: Final = ("recent", "full")
RESULTS: Final = ("holds", "breach", "failed")

STARTED: Final = Gauge(
    "tally_audit_start_timestamp_seconds",
    "Unix time at which the last audit began, by scope: what was touched (recent), or all (full).",
    ("scope",),
    registry=REGISTRY,
)
COMPLETED: Final = Gauge(
    "tally_audit_completion_timestamp_seconds",
    "Unix time of the last verdict, by scope. A full one is also a recent one: it covers "
    "more. An audit that cannot read the books gives none.",
    ("scope",),
    registry=REGISTRY,
)
RUNS: Final = Counter(
    "tally_audit_runs",
    "Audits that ended, by scope and result: every invariant holds, a breach, or failed (the books "
    "could not be read).",
    ("scope", "result"),
    registry=REGISTRY,
)
BREACHES: Final = Gauge(
    "tally_audit_breaches",
    "Differences in the last verdict; NaN until there is one. One on what was touched adds "
    "those of the last full one, until the next full one.",
    registry=REGISTRY,
)
STANDING: Final = Gauge(
    "tally_audit_standing_minor",
    "Money that was taken and stands by a person's decision, in minor units, by currency, in the "
    "last full verdict: no order and no user holds it. 0 for the other currencies of which Tally "
    "took any.",
    ("currency",),
    registry=REGISTRY,
)
NEW_STANDING: Final = Gauge(
    "tally_audit_new_standing",
    "Cases of what stands that the last full verdict saw first; 0 if it had none to compare with.",
    registry=REGISTRY,
)

for _scope in SCOPES:
    for _result in RESULTS:
        RUNS.labels(_scope, _result)


def export(memory: Memory) -> None:
    """Export what the last verdicts say, also those from before a restart."""
    full, recent = memory.full, memory.recent
    for scope, verdict in (("full", full), ("recent", recent)):
        if verdict is not None:
            STARTED.labels(scope).set(verdict.start)
    if full is not None:
        COMPLETED.labels("full").set(full.completion)
    completions = [each.completion for each in (full, recent) if each is not None]
    if completions:
        COMPLETED.labels("recent").set(max(completions))
    # 0 would say that the books balance.
    BREACHES.set(breaches(full, recent) if completions else math.nan)
    if full is not None:
        STANDING.clear()
        for currency, amount in full.standing_minor.items():
            STANDING.labels(currency).set(amount)
        NEW_STANDING.set(full.new_standing)


def breaches(full: Verdict | None, recent: Verdict | None) -> int:
    """The differences of the last full verdict, and those that a later recent one adds.

    What was not touched since a full verdict is as wrong as it was then.
    """
    if full is None or recent is None or recent.completion < full.completion:
        return full.breaches if full else 0
    again = len({*full.keys} & {*recent.keys})
    return full.breaches + recent.breaches - again
