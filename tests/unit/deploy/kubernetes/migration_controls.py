"""What breaks the rules about migrations, one thing wrong at a time."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes.breaking import LOCAL, Control, at, pod

CONTROLS: Final = [
    Control(
        "migrations_are_one_job_a_release",
        "named after its service and release",
        at("Job", "order-migrate-*", "metadata", "name", value="order-migrate"),
    ),
    Control(
        "migrations_are_one_job_a_release",
        "never cleared",
        at("Job", "order-migrate-*", "spec", "ttlSecondsAfterFinished", gone=True),
    ),
    Control(
        "migrations_are_one_job_a_release",
        "without end",
        at("Job", "order-migrate-*", "spec", "activeDeadlineSeconds", gone=True),
    ),
    Control(
        "migrations_are_one_job_a_release",
        "in every replica",
        pod("Deployment", "order", "initContainers", value=[{"name": "migrate"}]),
    ),
    Control(
        "migrations_are_tried_until_their_time_is_over",
        "does not look for its server for 470 s",
        at("Job", "order-migrate-*", "spec", "backoffLimit", value=1),
    ),
    Control(
        "migrations_are_tried_until_their_time_is_over",
        "does not look for its server for 320 s",
        pod("Job", "order-migrate-*", "containers", 0, "env", gone=True),
        overlay=LOCAL,
    ),
    Control(
        "migrations_are_tried_until_their_time_is_over",
        "has no time for its last try",
        at("Job", "order-migrate-*", "spec", "activeDeadlineSeconds", value=600),
    ),
    Control(
        "migrations_are_tried_until_their_time_is_over",
        "Deployment/order: gives its rollout up",
        at("Deployment", "order", "spec", "progressDeadlineSeconds", gone=True),
    ),
]
