"""What breaks the rules about what the cluster is told, one thing wrong at a time."""

from __future__ import annotations

from typing import Final

from tests.unit.deploy.kubernetes.breaking import (
    LOCAL,
    MULTI,
    Control,
    at,
    container,
    pod,
    variable,
)

_NAMESPACE: Final = ("Namespace", "tally", "metadata", "labels")
_ANNOTATIONS: Final = ("spec", "template", "metadata", "annotations")

CONTROLS: Final = [
    Control(
        "config_maps_of_pods_cannot_change",
        "ConfigMap/payment-settings",
        at("ConfigMap", "payment-settings*", "immutable", gone=True),
    ),
    Control(
        "config_maps_of_pods_cannot_change",
        "ConfigMap/tally-settings",
        at("ConfigMap", "tally-settings*", "immutable", value=False),
        overlay=MULTI,
    ),
    Control(
        "namespace_refuses_pods_with_privileges",
        "Namespace/tally: does not enforce",
        at(*_NAMESPACE, "pod-security.kubernetes.io/enforce", gone=True),
    ),
    Control(
        "namespace_refuses_pods_with_privileges",
        "Namespace/tally: does not warn",
        at(*_NAMESPACE, "pod-security.kubernetes.io/warn", value="baseline"),
        overlay=LOCAL,
    ),
    Control(
        "prometheus_is_told_where",
        "Deployment/order: prometheus.io/port is not 9464",
        at("Deployment", "order", *_ANNOTATIONS, "prometheus.io/port", value="9090"),
    ),
    Control(
        "prometheus_is_told_where",
        "Deployment/order: prometheus.io/scrape is not true",
        at("Deployment", "order", *_ANNOTATIONS, gone=True),
    ),
    Control(
        "nothing_is_held_back",
        "is suspended",
        at("Job", "order-migrate-*", "spec", "suspend", value=True),
    ),
    Control(
        "nothing_is_held_back",
        "Deployment/order: is paused",
        at("Deployment", "order", "spec", "paused", value=True),
    ),
    Control(
        "nothing_is_held_back",
        "Deployment/gateway: runs no pod",
        at("Deployment", "gateway", "spec", "replicas", value=0),
        overlay=LOCAL,
    ),
    Control(
        "memory_is_enough",
        "Deployment/order: is killed at 64 MiB",
        container("order", "resources", "limits", "memory", value="64Mi"),
    ),
    Control(
        "memory_is_enough",
        "is killed at 122 MiB",
        pod(
            *("Job", "order-migrate-*", "containers", 0, "resources", "limits", "memory"),
            value="128M",
        ),
    ),
    Control(
        "memory_is_enough",
        "Deployment/order: asks for less memory",
        container("order", "resources", "requests", "memory", value="64Mi"),
        overlay=MULTI,
    ),
    Control(
        "production_lists_no_methods",
        "Deployment/order: reflection is on in production",
        at("ConfigMap", "tally-settings*", "data", "TALLY_REFLECTION", gone=True),
    ),
    Control(
        "production_lists_no_methods",
        "Deployment/order: reflection is on in production",
        variable("order", "TALLY_ORDER_REFLECTION", "true"),
    ),
    Control(
        "production_lists_no_methods",
        "Deployment/order: reflection is off in local",
        variable("order", "TALLY_REFLECTION", "false"),
        overlay=LOCAL,
    ),
]
