"""What breaks the rules about many replicas, one thing wrong at a time."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes.breaking import (
    LOCAL,
    MULTI,
    Control,
    at,
    variable,
    with_one_more,
    without,
)

CONTROLS: Final = [
    Control(
        "rollouts_lose_no_replica",
        "one more at a time",
        at("Deployment", "order", "spec", "strategy", "rollingUpdate", gone=True),
    ),
    Control(
        "rollouts_lose_no_replica",
        "goes on before clients",
        at("Deployment", "order", "spec", "minReadySeconds", value=3),
    ),
    Control(
        "rollouts_lose_no_replica",
        "none but old",
        at("Deployment", "order", "spec", "minReadySeconds", value=5),
        overlay="production",
    ),
    Control(
        "disruptions_are_bounded",
        "has 0",
        without("PodDisruptionBudget", "order"),
    ),
    Control(
        "disruptions_are_bounded",
        "about 4 workloads",
        at(
            *("PodDisruptionBudget", "order", "spec", "selector"),
            value={"matchLabels": {"app.kubernetes.io/component": "server"}},
        ),
    ),
    Control(
        "disruptions_are_bounded",
        "one pod go",
        at("PodDisruptionBudget", "order", "spec", "maxUnavailable", value=0),
    ),
    Control(
        "disruptions_are_bounded",
        "unhealthy",
        at("PodDisruptionBudget", "order", "spec", "unhealthyPodEvictionPolicy", gone=True),
    ),
    Control(
        "pools_fit_the_database",
        "StatefulSet/postgres",
        at("Deployment", "order", "spec", "replicas", value=16),
        overlay=MULTI,
    ),
    Control(
        "pools_fit_the_database",
        "StatefulSet/postgres",
        variable("order", "TALLY_POOL_SIZE", "200"),
        overlay=LOCAL,
    ),
    Control(
        "pools_fit_the_database",
        "Deployment/order",
        variable("order", "TALLY_ORDER_POOL_SIZE", "12"),
    ),
    Control(
        "pools_fit_the_database",
        "Deployment/order",
        at("HorizontalPodAutoscaler", "order", "spec", "maxReplicas", value=12),
    ),
    Control(
        "production_brings_no_servers",
        "StatefulSet/postgres",
        with_one_more(
            {
                "kind": "StatefulSet",
                "metadata": {"name": "postgres"},
                "spec": {"template": {"metadata": {"labels": {}}, "spec": {"containers": []}}},
            }
        ),
    ),
]
