"""Rules about migrations: one Job per release, repeated until its time is over."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

from tests.unit.deploy.kubernetes.engine import (
    MIGRATIONS,
    SERVERS,
    SET,
    UNSET,
    Check,
    Must,
    Rule,
    at_least,
    bad,
    between,
    more_than,
    one_of,
)
from tests.unit.deploy.kubernetes.manifests import GONE, LABEL, Item

BACKOFF_FIRST_S: Final = 10
BACKOFF_MAX_S: Final = 360
"""Kubernetes' own: a Job waits twice as long after each failure, from the first to the longest."""
UNTRIED_MAX_S: Final = 90
"""How long a database may be reachable before an attempt notices it."""


def release(each: Item) -> str:
    """The release of its label as part of a name."""
    return re.sub(r"[^a-z0-9]+", "-", each.labels.get(f"{LABEL}version", "?"))


def attempts(retries: int, each_s: float) -> list[float]:
    """When the attempts of a Job begin that take so long and fail, in seconds from its start."""
    begun = [0.0]
    for failures in range(retries):
        begun.append(begun[-1] + each_s + min(BACKOFF_FIRST_S * 2**failures, BACKOFF_MAX_S))
    return begun


def longest_pause_s(each: Item) -> float:
    """The longest time in which no attempt waits for the database."""
    limit_s, retries = each.get("spec.activeDeadlineSeconds"), each.get("spec.backoffLimit")
    wait_s = float(each.setting("migrate_wait_s"))
    begun = [one for one in attempts(retries, wait_s) if one < limit_s]
    return max(after - (before + wait_s) for before, after in pairwise([*begun, float(limit_s)]))


def after_the_last_attempt(each: Item) -> Must:
    """The deadline is after the last attempt begins, if each fails at once."""
    return more_than(attempts(each.get("spec.backoffLimit"), 0)[-1])


def longer_than_migrations(each: Item) -> Must:
    deadlines = [one.get("spec.activeDeadlineSeconds") for one in each.overlay.migrations]
    return more_than(max(deadlines, default=0), default=600)


migrations_are_one_job_a_release = Rule(
    "A Job cannot be changed, so each release has its own, which ends and is removed.",
    MIGRATIONS,
    Check("kind", "Job", bad("Deployment", says="Deployment/order-migrate")),
    Check(
        "metadata.name",
        lambda each: f"{each.service}-migrate-{release(each)}",
        bad("order-migrate", says="Job/order-migrate"),
    ),
    Check("spec.ttlSecondsAfterFinished", at_least(1), bad(GONE)),
    Check("spec.activeDeadlineSeconds", SET, bad(GONE)),
    Check("spec.backoffLimit", at_least(0), bad(GONE)),
    Check("pod.restartPolicy", one_of("Never", "OnFailure"), bad("Always")),
)

servers_do_not_migrate = Rule(
    "Each replica would do so before it serves, under a role that may change the schema.",
    SERVERS,
    Check("pod.initContainers", UNSET, bad([{"name": "migrate"}])),
)

migrations_are_tried_until_their_time_is_over = Rule(
    "On a new cluster the database may come minutes after the Job.",
    MIGRATIONS,
    Check(
        longest_pause_s,
        between(0, UNTRIED_MAX_S),
        bad(1, "spec.backoffLimit", says="470.0 is not"),
        bad(GONE, "container.env", says="320.0 is not"),
    ),
    Check("spec.activeDeadlineSeconds", after_the_last_attempt, bad(600)),
)

rollouts_outlast_migrations = Rule(
    "New replicas wait for their schema; their rollout must not be given up meanwhile.",
    SERVERS,
    Check("spec.progressDeadlineSeconds", longer_than_migrations, bad(GONE)),
)
