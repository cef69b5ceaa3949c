"""Rules about migrations: one Job a release, tried again until its time is over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from tests.unit.deploy.kubernetes.manifests import LABEL, Overlay
from tests.unit.deploy.kubernetes.rule import rule

BACKOFF_FIRST_S: Final = 10
BACKOFF_MAX_S: Final = 360
"""Kubernetes' own: a Job waits twice as long after each failure, from the first to the most."""
UNTRIED_MAX_S: Final = 90
"""So long, at most, may a server be there that nobody looks for."""


@rule
def migrations_are_one_job_a_release(overlay: Overlay) -> Iterator[str]:
    for each in overlay.migrations:
        release = re.sub(r"[^a-z0-9]+", "-", each.labels.get(f"{LABEL}version", "?"))
        if each.kind != "Job" or each.name != f"{each.service}-migrate-{release}":
            yield f"{each.told}: is no Job named after its service and release"
        if each.spec.get("ttlSecondsAfterFinished", 0) < 1:
            yield f"{each.told}: is never cleared away"
        if not each.spec.get("activeDeadlineSeconds") or "backoffLimit" not in each.spec:
            yield f"{each.told}: tries without end"
        if each.pod.get("restartPolicy") not in ("Never", "OnFailure"):
            yield f"{each.told}: is started again when it has ended"
    for each in overlay.servers:
        if each.pod.get("initContainers"):
            yield f"{each.told}: does something in every replica before it serves"


def tries(retries: int, each_s: float) -> list[float]:
    """When a Job's attempts begin that take so long each and fail, in seconds from its start."""
    begun = [0.0]
    for failures in range(retries):
        begun.append(begun[-1] + each_s + min(BACKOFF_FIRST_S * 2**failures, BACKOFF_MAX_S))
    return begun


@rule
def migrations_are_tried_until_their_time_is_over(overlay: Overlay) -> Iterator[str]:
    for each in overlay.migrations:
        limit_s, retries = each.spec["activeDeadlineSeconds"], each.spec["backoffLimit"]
        wait_s = float(overlay.setting(each, "migrate_wait_s"))
        begun = [one for one in tries(retries, wait_s) if one < limit_s]
        untried_s = max(
            after - (before + wait_s) for before, after in pairwise([*begun, float(limit_s)])
        )
        if untried_s > UNTRIED_MAX_S:
            yield f"{each.told}: does not look for its server for {untried_s:g} s"
        if tries(retries, 0)[-1] >= limit_s:
            yield f"{each.told}: has no time for its last try"
    for each in overlay.servers:
        of_job = [one.spec["activeDeadlineSeconds"] for one in overlay.migrations]
        if each.spec.get("progressDeadlineSeconds", 600) <= max(of_job, default=0):
            yield f"{each.told}: gives its rollout up while the migration may still succeed"
